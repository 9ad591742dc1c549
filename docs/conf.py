"""How Sphinx builds these pages: `make docs`, or `python -m sphinx -W -n docs build/docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for generated.py

from edgestitch import __version__

project = "edgestitch"
author = "the edgestitch contributors"
project_copyright = author
release = version = __version__

extensions = [
    "myst_parser",  # the pages are Markdown
    "sphinx.ext.autodoc",
    "sphinx_click",
    "generated",  # beside this file; also docstrings in Google's style
]
exclude_patterns = ["examples/**"]  # projects to copy, with pages of their own
html_theme = "furo"
html_title = f"edgestitch {release}"
html_copy_source = False
html_show_sphinx = False

default_role = "code"  # docstrings mark code by single backticks
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!edgestitch\.).*"),  # other packages': to find theirs takes the network
    (r"py:class", r"edgestitch\.(nvml|distributed|backends\.trt_compile)\..*"),  # have no page
    (r"py:class", r"edgestitch\..*\.(T|A|Images)"),  # variables of types
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # `os.environ`, not what is in it
autodoc_default_options = {"members": True, "undoc-members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
