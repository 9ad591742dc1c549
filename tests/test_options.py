"""Training: every option does what it says, and a training that was killed goes on as if it were not."""

from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from edgestitch import train
from edgestitch.artifact import load_tensors
from edgestitch.augment import mix
from edgestitch.calibrate import _stitching_layers, distilled, fold_low_rank, make_low_rank
from edgestitch.data import preprocess, toy_images
from edgestitch.images import ArraySource
from edgestitch.network import StitchNetwork, build_network
from edgestitch.recipe import Finetuning, Training, load_family
from edgestitch.train import Trainer

replace = msgspec.structs.replace
CPU = torch.device("cpu")
STEPS = 3


class Killed(BaseException):
    """Nothing in the package may catch it."""


@pytest.fixture
def often(monkeypatch):
    """A checkpoint at every step."""
    monkeypatch.setattr(train, "CHECKPOINT_S", -1.0)


@pytest.fixture
def fit(tmp_path):
    """Trains a toy anchor from the same weights always, killed before some step if asked."""

    def fit(
        training: Training, *, kill: int = -1, parts: int = 1, work: str = "work", **options: Any
    ) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        family = load_family("toy")
        network = build_network(family)
        module = network.assemble(family.whole("a"))

        def progress(stage: str, done: int, total: int) -> None:
            if done == kill:
                raise Killed

        def loss(images: Any, labels: Any, _: Any) -> torch.Tensor:
            return cross_entropy(module(images), labels, label_smoothing=training.label_smoothing)

        trainer = Trainer(
            family=family,
            source=ArraySource(toy_images(32 * STEPS)),
            seed=0,
            work=tmp_path / work,
            device=CPU,
            parts=parts,
            progress=progress,
            **options,
        )
        trainer.fit(module, loss, training, "anchor a", {"training": training})
        return {name: tensor.clone() for name, tensor in module.state_dict().items()}

    return fit


def training(**options: Any) -> Training:
    return Training(
        **{"epochs": 2, "batch_size": 32, "learning_rate": 1e-2, "warmup_epochs": 0.5, **options}
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"ema": 0.8},
    "sgd": {"optimizer": "sgd"},
    "clip": {"clip": 0.1},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16", "clip": 1.0},
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "both": {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
    "all": {"ema": 0.5, "optimizer": "sgd", "clip": 1.0, "shift": 1, "flip": True, "crop": 0.5},
}
by_option = pytest.mark.parametrize("options", [pytest.param(o, id=n) for n, o in OPTIONS.items()])


@by_option
def test_killed_inside_an_epoch_it_resumes_to_the_same_weights(fit, often, options):
    whole = fit(training(**options), work="whole", parts=2)
    for kill in (1, 2, 4):
        with pytest.raises(Killed):
            fit(training(**options), kill=kill, parts=2)
    resumed = fit(training(**options), parts=2)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_inside_an_epoch_it_goes_on_at_the_very_step(fit, often, tmp_path, step):
    with pytest.raises(Killed):
        fit(training(), kill=step)
    path = tmp_path / "work" / "anchor-a.safetensors"
    metadata, _ = load_tensors(train.CHECKPOINT, train.CHECKPOINT_VERSION, path)
    assert divmod(step, STEPS) == (int(metadata["epoch"]), int(metadata["step"]))


@by_option
def test_every_option_changes_what_is_learned(fit, options):
    if options:
        plain, other = fit(training(), work="plain"), fit(training(**options))
        assert any(not torch.equal(plain[name], other[name]) for name in plain)
        assert all(tensor.isfinite().all() for tensor in other.values())


@pytest.mark.parametrize(
    "options", [pytest.param(o, id=n) for n, o in OPTIONS.items() if "optimizer" not in o]
)
def test_every_option_learns(fit, options):
    """All but SGD, which ninety steps take nowhere from these fresh blocks; by the loss on images as they are, whatever the training makes of them."""
    family = load_family("toy")
    anchor = build_network(family).assemble(family.whole("a"))
    data = toy_images(64, seed=9)
    images = preprocess(torch.from_numpy(data.images), mean=family.mean, std=family.std)
    labels = torch.from_numpy(data.labels)
    losses = []
    for epochs in (1, 30):
        anchor.load_state_dict(
            fit(training(**options, epochs=epochs, learning_rate=2e-2), work=str(epochs))
        )
        with torch.no_grad():
            losses.append(float(cross_entropy(anchor(images), labels)))
    assert losses[1] < 0.8 * losses[0]


def test_averaged_weights_are_the_mean_that_decay_says(fit, often, tmp_path, monkeypatch):
    """From the weights after each step, which do not depend on whether an average is kept."""
    after = []
    step = train._State.step

    def telling(self: Any, *arguments: Any) -> Any:
        result = step(self, *arguments)
        after.append({n: p.detach().clone() for n, p in self.module.named_parameters()})
        return result

    monkeypatch.setattr(train._State, "step", telling)
    found = fit(training(ema=0.8))
    mean = after[0]
    for weights in after[1:]:
        mean = {name: 0.8 * mean[name] + 0.2 * weights[name] for name in mean}
    torch.testing.assert_close({name: found[name] for name in mean}, mean)
    last = fit(training(), work="plain")
    assert all(torch.equal(after[len(after) // 2 - 1][name], last[name]) for name in mean)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_no_gradient_is_longer_than_clip_says(fit, monkeypatch, precision):
    norms = []

    def telling(optimizer: Any, *_: Any, **__: Any) -> None:
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients if g is not None]).norm()))

    hook = register_optimizer_step_pre_hook(telling)
    try:
        fit(training(clip=0.05, precision=precision))
    finally:
        hook.remove()
    assert len(norms) == 2 * STEPS
    assert max(norms) <= 0.05 * (1 + 1e-3)
    assert max(norms) > 0.04


def test_the_first_step_of_sgd_is_that_of_its_rule(fit):
    """The first step: Nesterov's momentum makes it 1.9 gradients long."""
    gradients: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def telling(optimizer: Any, *_: Any, **__: Any) -> None:
        if not gradients:
            gradients.update(
                {id(p): (p.detach().clone(), p.grad.clone()) for p in _params(optimizer)}
            )

    moved: list[Any] = []

    def after(optimizer: Any, *_: Any, **__: Any) -> None:
        if not moved:
            [group] = optimizer.param_groups
            for parameter in _params(optimizer):
                before, gradient = gradients[id(parameter)]
                expected = before - group["lr"] * 1.9 * gradient
                torch.testing.assert_close(parameter.detach(), expected)
                moved.append(parameter)

    hooks = [
        register_optimizer_step_pre_hook(telling),
        register_optimizer_step_post_hook(after),
    ]
    try:
        fit(training(optimizer="sgd", weight_decay=0.0))
    finally:
        for hook in hooks:
            hook.remove()
    assert moved


def _params(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_the_forward_pass_has_the_precision_and_weights_stay_single(fit, precision, dtype):
    seen = set()

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(module, nn.Linear):
            seen.add(output.dtype)

    with nn.modules.module.register_module_forward_hook(look):
        weights = fit(training(precision=precision))
    assert seen == {dtype}
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


# --- refusals --------------------------------------------------------------------------------


def test_a_training_that_diverges_is_refused_and_leaves_no_checkpoint(fit, tmp_path):
    message = r"anchor a diverged at step 3: the loss is .*; lower learning_rate, or set clip"
    with pytest.raises(ValueError, match=message):
        fit(training(learning_rate=1e30, optimizer="sgd", warmup_epochs=0.0))
    assert not list((tmp_path / "work").glob("*"))


def test_a_batch_that_cannot_be_divided_is_refused(fit):
    with pytest.raises(ValueError, match="anchor a: a batch of 4 cannot be divided by 5"):
        fit(training(batch_size=4), parts=5)


# --- mixing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}]
)
@pytest.mark.parametrize("seed", range(5))
def test_labels_are_mixed_as_images_are(options, seed):
    """Image i is all i, so that its mean says what share of which label it has."""
    torch.manual_seed(seed)
    labels = torch.arange(4)
    images = labels.float().view(4, 1, 1, 1).expand(4, 1, 16, 16).clone()
    mixed, soft = mix(images, labels, Training(epochs=1, **options), 4)
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert ((soft > 0).sum(1) <= 2).all()
    torch.testing.assert_close(mixed.mean((1, 2, 3)), (soft * torch.arange(4.0)).sum(1))


def test_without_mixing_labels_stay_numbers():
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    same = mix(images, labels, Training(epochs=1), 4)
    assert same[0] is images
    assert same[1] is labels


def test_images_without_labels_are_mixed_all_the_same():
    torch.manual_seed(0)
    images, labels = torch.rand(4, 1, 8, 8), torch.full((4,), -1)
    mixed, same = mix(images, labels, Training(epochs=1, mixup=1.0), 4)
    assert not torch.equal(mixed, images)
    assert torch.equal(same, labels)


# --- fine-tuning -----------------------------------------------------------------------------


def logits(network: StitchNetwork) -> dict[str, torch.Tensor]:
    images = torch.rand(4, *network.family.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return {t.name: network(images, t) for t in network.family.topologies}


def test_low_rank_begins_with_the_network_as_it_was_and_trains_little(toy_network):
    before = logits(toy_network)
    make_low_rank(toy_network, 2, seed=0)
    torch.testing.assert_close(logits(toy_network), before, rtol=0, atol=0)
    for layer in _stitching_layers(toy_network):
        trained = sum(p.numel() for p in layer.parameters() if p.requires_grad)
        assert trained == 2 * (layer.in_features + layer.out_features) + layer.out_features


def test_folding_leaves_outputs_and_plain_weights(toy_network):
    names = list(toy_network.state_dict())
    old = [layer.weight.detach().clone() for layer in _stitching_layers(toy_network)]
    make_low_rank(toy_network, 2, seed=0)
    with torch.no_grad():
        for name, parameter in toy_network.named_parameters():
            if name.endswith(".b"):
                parameter.normal_()
    before = logits(toy_network)
    fold_low_rank(toy_network)
    torch.testing.assert_close(logits(toy_network), before, rtol=0, atol=0)
    assert sorted(toy_network.state_dict()) == sorted(names)
    assert all(parameter.requires_grad for parameter in toy_network.parameters())
    for layer, weight in zip(_stitching_layers(toy_network), old, strict=True):
        assert torch.linalg.matrix_rank(layer.weight.detach() - weight, rtol=1e-4) == 2


def test_low_rank_is_drawn_from_the_seed_alone(toy_network):
    drawn = []
    for state in (1, 2):
        torch.manual_seed(state)
        make_low_rank(toy_network, 2, seed=7)
        drawn.append([p.detach().clone() for n, p in toy_network.named_parameters() if ".a" in n])
        fold_low_rank(toy_network)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)


def test_stitching_layers_have_a_learning_rate_of_their_own(toy_network):
    optimizer = train._optimizer(toy_network, Finetuning(epochs=1, stitch_rate=10.0))
    stitching = {id(p) for layer in _stitching_layers(toy_network) for p in layer.parameters()}
    scales = {id(p): g["scale"] for g in optimizer.param_groups for p in g["params"]}
    assert {i for i, scale in scales.items() if scale == 10} == stitching
    assert len(scales) == len(list(toy_network.parameters()))


def test_a_hard_teacher_says_a_class_and_a_soft_one_probabilities():
    random = torch.Generator().manual_seed(0)
    ours, taught = (torch.randn(8, 4, generator=random) for _ in range(2))
    hard = distilled(ours, taught, Finetuning(epochs=1, hard=True))
    torch.testing.assert_close(hard, distilled(ours, 5 * taught, Finetuning(epochs=1, hard=True)))
    soft = distilled(ours, taught, Finetuning(epochs=1))
    torch.testing.assert_close(soft, cross_entropy(ours, taught.softmax(1)))
    # Nobody is closer to the teacher than the teacher.
    assert distilled(taught, taught, Finetuning(epochs=1, temperature=2.0)) <= distilled(
        ours, taught, Finetuning(epochs=1, temperature=2.0)
    )
