"""Base of estimators that train a network on volumes of different shapes."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupShuffleSplit
from sklearn.utils.validation import check_is_fitted

from dmrifit._optional import import_optional
from dmrifit._utils.checks import check_fields
from dmrifit._utils.counts import counted
from dmrifit._utils.progress import step_bar
from dmrifit._utils.randomness import RandomState, Seed
from dmrifit.io.atomic_files import remove_abandoned_parts, write_text
from dmrifit.io.parameter_json import RefusedError, encoded, refuse_keys
from dmrifit.networks.training import (
    Training,
    check_training,
    learning_rate_at,
    read_training,
    stored_training,
)
from dmrifit.networks.volume_cases import VolumeList, add_to_digest, listed, naming, volume_inputs

if TYPE_CHECKING:
    import skorch
    import torch
    from sklearn.utils import Tags

__all__ = ["VolumeEstimator"]

_WEIGHTS = "net.safetensors"
_STATE = "state.safetensors"
_FORMAT = 2  # 1 lacked the best weights of some trainings
_COMMON_DEFAULTS = Training(
    epochs=20,
    batch_size=2,
    learning_rate=0.001,
    schedule="constant",
    decay=1.0,
    validation_fraction=0.0,
    mixed_precision=False,
    compile=False,
    verbose=False,
)
#: Remedy where a training cannot resume.
_AFRESH = "train from the beginning: remove that folder, or choose another (checkpoint=FOLDER)"
#: Parameters that may change when a training resumes; `_run_folder` adds a seed that is a number.
_NOT_OF_RUN = frozenset(
    {"checkpoint", "device", "epochs", "random_state", "verbose", "warm_start_from"}
)


@dataclass(repr=False, eq=False)
class VolumeEstimator(BaseEstimator, ABC):
    """
    Base of estimators that train a network on volumes, one case after the other.

    A case is a volume of its own shape, or the source from which a derived class makes one. The
    network is that of a skorch net in ``net_``; a derived class declares its ``default_training``,
    a `Training` of the fields that differ from those of this class, and a few methods:

    ``_module()``
        The network. Called with the generator seeded, after ``_learn``.
    ``_criterion()``
        The loss, a module called with answers and targets.
    ``_case_score(prediction, target)``
        Score of the prediction of one case; higher is better.

    and, where the default is not enough, ``_inputs(case)`` (the network's input for a case: an
    array of shape (channels, x, y, z) or a dict of arrays, by the names of the arguments of the
    network's ``forward``), ``_target(target, inputs)`` (an array, or a dict or tuple of arrays),
    ``_stream(inputs, targets, rng, epoch)`` (the samples of an epoch: by default whole cases in
    random order), ``_predict_case(infer, inputs, case)`` (by default the whole case at once),
    ``_margin`` (voxels that a network without padding loses on either side of each axis),
    ``_optimizer()``, ``_learning_rate(epoch)``, ``_learn(inputs, targets)`` with
    ``_fitted_names``, ``_first_model()``, and ``_check()``. A class whose ``_first_model`` gives
    one has the parameter ``warm_start_from``, which names it.

    Everything random comes from `random_state`; the generators of torch and numpy stay as they
    were. Training and prediction use one CPU thread, whatever number is set, so that results do
    not depend on it; use processes to run several at once. On the CPU the same seed gives the same
    bits; on a GPU cuDNN uses its deterministic kernels, but some layers (pooling and interpolation
    in three dimensions) have none.

    With a folder as ``checkpoint`` of the `Training`, the state of the training is written after
    each epoch, and the same training (class, parameters, cases, targets and groups) resumes there
    after an interrupt.
    A finished training returns its result at once; without a number in `random_state` the first
    seed is used again. The number of epochs may be raised where the schedule does not depend on
    it.

    Parameters
    ----------
    training : Training, optional
        How the network is trained: a `Training`, whose fields that are None take the values of
        ``default_training`` of the class. By default all of them do: 20 epochs, steps of 2
        samples, a constant learning rate of 0.001, no validation.
    device : str, default="auto"
        ``"auto"`` uses a GPU if available; ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    random_state : int, RandomState or None, default=None
        Seed of initial weights, split, samples and random layers of the network.

    Attributes
    ----------
    net_ : skorch.NeuralNet
        The trained net.
    history_ : list of dict
        For each epoch ``epoch``, ``learning_rate``, ``train_loss`` and, with validation cases,
        ``valid_score``.
    n_channels_ : int
        Number of channels of a case.

    See Also
    --------
    dmrifit.save_model : Write a trained estimator to a file.
    """

    #: Fields of `Training` that differ from the defaults of all classes.
    default_training: ClassVar[Training] = Training()
    #: Fitted attributes that prediction needs, beside the network.
    _fitted_names: ClassVar[tuple[str, ...]] = ("n_channels_",)
    #: Whether predictions are volumes, whose shapes differ between cases.
    _predicts_volumes: ClassVar[bool] = False
    _needs_targets: ClassVar[bool] = True

    _: KW_ONLY
    training: Training | None = None
    device: str = "auto"
    random_state: RandomState = None

    # Public methods -----------------------------------------------------------------------------

    def fit(
        self,
        X: Sequence[Any],
        y: Sequence[Any] | None = None,
        *,
        groups: Sequence[Any] | None = None,
    ) -> Any:
        """
        Train the network.

        Parameters
        ----------
        X : sequence of n_cases
            Volumes of shape (x, y, z) or (x, y, z, channels); shapes may differ between cases.
        y : sequence of n_cases, optional
            A target for each case.
        groups : sequence of n_cases, optional
            The patient of each case: all cases of a patient are either for training or for
            validation. By default each case is a patient.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If a parameter, a case or a target is invalid; before the training starts.
        FloatingPointError
            If the loss or a weight becomes infinite or NaN.
        ImportError
            If torch or skorch is not installed.
        """
        return self._train(X, y, groups)

    def predict(self, X: Sequence[Any]) -> NDArray[Any]:
        """
        Predict the targets of cases.

        Parameters
        ----------
        X : sequence of n_cases
            As in `fit`.

        Returns
        -------
        ndarray of shape (n_cases, ...)
            A prediction for each case. Where predictions are volumes, an array of n_cases objects,
            each a volume with the shape of its case.

        Raises
        ------
        ValueError
            If the number of channels of a case differs from that in training.
        """
        predictions = VolumeList(self._predictions(X))
        return np.asarray(predictions) if self._predicts_volumes else np.stack(predictions)

    def score(self, X: Sequence[Any], y: Sequence[Any]) -> float:
        """
        Compute the mean score of cases; higher is better.

        Parameters
        ----------
        X, y : sequence of n_cases
            As in `fit`.

        Returns
        -------
        float
            The mean.
        """
        cases = listed(X, "cases")
        targets = listed(y, "targets", len(cases))
        pairs = zip(self._predictions(cases), targets, strict=True)
        scores = [self._case_score(prediction, target) for prediction, target in pairs]
        return float(np.mean(scores))

    def set_params(self, **params: Any) -> Any:
        """
        Set parameters, also those of the training, such as ``training__epochs``.

        Parameters
        ----------
        **params : dict
            Values by name.

        Returns
        -------
        self
            Itself.

        Raises
        ------
        ValueError
            If a field of a training is set where there is none, or there is no such parameter.
        """
        fields = [name for name in params if name.startswith("training__")]
        if fields and params.get("training", self.training) is None:
            raise ValueError(
                f"{fields[0]}={params[fields[0]]!r}: there is no Training to change; pass "
                f"training=Training() to {type(self).__name__} first"
            )
        return super().set_params(**params)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.target_tags.required = self._needs_targets
        tags.no_validation = True
        return tags

    # Methods for derived classes ----------------------------------------------------------------

    @abstractmethod
    def _module(self) -> torch.nn.Module:
        """Make the network."""

    @abstractmethod
    def _criterion(self) -> torch.nn.Module:
        """Make the loss."""

    @abstractmethod
    def _case_score(self, prediction: Any, target: Any) -> float:
        """Score the prediction of a case; higher is better."""

    def _optimizer(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        return import_optional("torch.optim").Adam, {}

    def _learning_rate(self, epoch: int) -> float:
        """Compute the learning rate of an epoch, from its number alone."""
        return learning_rate_at(epoch, self._settings)

    def _first_model(self) -> Any:
        """Give the model with whose weights the training begins; None for new ones."""
        return None

    @property
    def _settings(self) -> Any:
        """The training with all fields filled but patience, checkpoint and after_epoch."""
        return _COMMON_DEFAULTS | self.default_training | self.training

    @property
    def _margin(self) -> tuple[int, int, int]:
        return (0, 0, 0)

    def _inputs(self, case: Any) -> Any:
        """Make the network's input from a case: (channels, x, y, z)."""
        return volume_inputs(case)

    def _target(self, target: Any, inputs: Any) -> Any:
        """Make the target of the loss from that of a case."""
        array = np.asarray(target, dtype=np.float32)
        if not np.isfinite(array).all():
            raise ValueError("a target with values that are not finite")
        return array

    def _learn(self, inputs: Sequence[Any], targets: Sequence[Any]) -> None:
        """Set fitted attributes from all cases, before the network is made."""
        self.n_channels_ = len(inputs[0])

    def _check_inputs(self, inputs: Any) -> None:
        """Reject inputs with another number of channels than the first training case."""
        if isinstance(inputs, np.ndarray):
            self._check_channels(len(inputs))

    def _check_channels(self, n: int) -> None:
        if n != self.n_channels_:
            raise ValueError(
                f"{counted(n, 'channel')} where the first case in training has {self.n_channels_}"
            )

    def _stream(
        self, inputs: Sequence[Any], targets: Sequence[Any], rng: np.random.Generator, epoch: int
    ) -> Iterator[tuple[Any, Any]]:
        """Yield the samples of an epoch."""
        for i in rng.permutation(len(inputs)):
            yield inputs[i], targets[i]

    def _predict_case(self, infer: Callable[[Any], Any], inputs: Any, case: Any) -> Any:
        """Predict a case; `infer` runs the network on a batch of inputs."""
        return infer([inputs])[0]

    def _check(self) -> None:
        """Check the parameters."""
        check_fields(self)
        check_training(self._settings)

    def _fitted_state(self) -> dict[str, Any]:
        """Describe the fitted attributes of a model file."""
        return {name: getattr(self, name) for name in (*self._fitted_names, "history_")}

    def _restore_fitted(self, fitted: Mapping[str, Any]) -> None:
        """Set the fitted attributes of a model file."""
        refuse_keys(fitted, {*self._fitted_names, "history_"}, "fitted attribute", complete=True)
        for name, value in fitted.items():
            setattr(self, name, value)

    def _check_restored(self) -> None:
        """Reject fitted attributes of a model file that are impossible."""
        n_channels = getattr(self, "n_channels_", 1)
        if type(n_channels) is not int or n_channels < 1:
            raise RefusedError(f"n_channels_ is {n_channels!r}")

    # Training -----------------------------------------------------------------------------------

    def _train(self, X: Any, y: Any, groups: Any) -> Any:
        """Train on cases, with optional targets and groups; for `fit` of a derived class."""
        self._check()
        import_optional("torch", "skorch")
        from dmrifit._utils import torch_state
        from dmrifit.networks import checkpoints, training_loop

        settings = self._settings
        device = torch_state.resolve_device(self.device)
        # Before the cases are prepared, which takes minutes.
        model = self._first_model()
        first_weights: dict[str, torch.Tensor] = {}
        if model is not None:
            first_weights = {k: v.cpu() for k, v in model.net_.module_.state_dict().items()}
        cases = listed(X, "cases")
        targets: Sequence[Any] = [None] * len(cases)
        if y is not None:
            targets = listed(y, "targets", len(cases))
        elif self._needs_targets:
            raise ValueError(f"{type(self).__name__} needs a target for each case; give y")
        # A second training that fails must not leave the first net with other attributes.
        if hasattr(self, "net_"):
            del self.net_
        seed = Seed(self.random_state)
        if groups is not None:
            groups = listed(groups, "groups", len(cases))
        inputs, loss_targets = [], []
        for i, case in enumerate(cases):
            with naming(i):
                inputs.append(self._inputs(case))
        # The first case fixes the number of channels that the others are checked against.
        self._learn(inputs, targets)
        digest = hashlib.blake2b(digest_size=16)
        for i, case_inputs in enumerate(inputs):
            with naming(i):
                self._check_inputs(case_inputs)
                loss_targets.append(self._target(targets[i], case_inputs))
            add_to_digest(digest, (case_inputs, loss_targets[i]))
        # The first weights themselves, not the path of their file, tell trainings apart.
        for key, value in sorted(first_weights.items()):
            digest.update(key.encode())
            digest.update(value.numpy().tobytes())
        folder = self._run_folder(digest, groups)
        state = None
        if folder is not None and (folder / _STATE).exists():
            remove_abandoned_parts(folder)
            state = checkpoints.read_state(folder / _STATE)
            seed = self._resumed_seed(state[0], folder)
        train, validation = self._split(len(cases), groups, seed.derived("split"))
        score = save = best = None
        with torch_state.one_torch_thread():
            net = self._new_net(device, seed, first_weights)
            if state is not None:
                best = checkpoints.restore_state(net, *state)
            if len(validation):

                def score(net: skorch.NeuralNet) -> float:
                    scores = []
                    for i in validation:
                        prediction = self._answer(net, inputs[i], cases[i])
                        scores.append(self._case_score(prediction, targets[i]))
                    return float(np.mean(scores))

            if folder is not None:
                packages = ("dmrifit", "torch", "skorch", "numpy")
                header = {
                    "format": _FORMAT,
                    "class": type(self).__name__,
                    "parameters": self._run_parameters(),
                    "seed": seed,
                    "versions": {name: version(name) for name in packages},
                }
                # Before the first epoch, so that a read-only folder is an error at once.
                text = json.dumps(header, indent=1, ensure_ascii=False) + "\n"
                write_text(folder / "run.json", text)
                save = partial(checkpoints.write_state, folder / _STATE, header=header)
            training_inputs = [inputs[i] for i in train]
            stream = partial(self._stream, training_inputs, [loss_targets[i] for i in train])
            epochs = training_loop.Epochs(
                training_loop.Batches(stream, settings.batch_size, seed.derived("samples")),
                self._learning_rate,
                settings,
                seed.derived("epochs"),
                score=score,
                save=save,
                best=best,
            )
            epochs.run(net)
        self.history_: list[dict[str, Any]] = checkpoints.history_rows(net)
        self.net_: skorch.NeuralNet = net
        return self

    def _new_net(
        self, device: torch.device, seed: int, weights: Mapping[str, torch.Tensor] | None = None
    ) -> skorch.NeuralNet:
        """Make the net with the first weights that are given, or those of a seed."""
        from dmrifit._utils import torch_state
        from dmrifit.networks import checkpoints, training_loop

        settings = self._settings
        gpu = device.type == "cuda"
        optimizer, options = self._optimizer()
        with torch_state.forked_generator(Seed(seed).derived("weights"), device):
            module = self._module()
            if weights:
                try:
                    checkpoints.load_weights(module, weights)
                except ValueError as error:
                    source = self.get_params(deep=False)["warm_start_from"]
                    raise ValueError(
                        f"training cannot begin with {source}: {error}; give the parameters of "
                        "that model, and its other inputs if it has seen such"
                    ) from None
            net = training_loop.Net(
                module,
                criterion=training_loop.WithMargin(self._criterion(), self._margin),
                optimizer=optimizer,
                **{f"optimizer__{key}": value for key, value in options.items()},
                lr=self._learning_rate(0),
                max_epochs=settings.epochs,
                batch_size=settings.batch_size,
                train_split=None,
                callbacks__epoch_timer=None,
                callbacks__valid_loss=None,
                callbacks__print_log=None,
                predict_nonlinearity=None,
                device=str(device),
                verbose=0,
                mixed=bool(settings.mixed_precision and gpu),
            ).initialize()
        if settings.compile and gpu:
            net.module_.compile()  # in place, so that the names of the weights stay
        return net

    def _split(
        self, n_cases: int, groups: Any, seed: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Split the cases by patient into those for training and those for validation."""
        numbers = np.arange(n_cases)
        fraction = self._settings.validation_fraction
        if not fraction:
            return numbers, numbers[:0]
        patients = numbers if groups is None else np.asarray([str(group) for group in groups])
        n_patients = len(np.unique(patients))
        n_validation = max(1, round(fraction * n_patients))
        # At least one patient to validate with, and one to learn from.
        n_validation = min(n_validation, n_patients - 1)
        if n_validation < 1:
            raise ValueError(
                f"all cases ({n_cases}) are of one patient, and validation_fraction {fraction} "
                "keeps whole patients; give more patients, or a validation_fraction of 0"
            )
        split = GroupShuffleSplit(1, test_size=n_validation, random_state=seed)
        train, validation = next(split.split(numbers, groups=patients))
        # Sorted, so that the order of samples follows from the seed of the epoch alone.
        return np.sort(train), np.sort(validation)

    # Prediction ---------------------------------------------------------------------------------

    def _predictions(self, X: Any) -> Iterator[Any]:
        """Predict one case after the other."""
        check_is_fitted(self)
        cases = listed(X, "cases")
        bar: Any = nullcontext(lambda: None)
        # A caller that predicts case by case shows a bar of its own.
        if self._settings.verbose and len(cases) > 1:
            bar = step_bar(len(cases), "case", "predict")
        with bar as count:
            for i, case in enumerate(cases):
                with naming(i):
                    inputs = self._inputs(case)
                    self._check_inputs(inputs)
                    yield self._answer(self.net_, inputs, case)
                count()

    def _answer(self, net: skorch.NeuralNet, inputs: Any, case: Any) -> Any:
        """Predict a case with a net, without effect on a training in progress."""
        with self._evaluating(net) as infer:
            return self._predict_case(infer, inputs, case)

    @contextmanager
    def _evaluating(self, net: skorch.NeuralNet) -> Iterator[Callable[[Any], Any]]:
        """Prepare a net for predictions; give what runs it on a tensor, or on a list of inputs."""
        torch = import_optional("torch")
        from dmrifit._utils import torch_state
        from dmrifit.networks import training_loop

        def infer(batch: Any) -> Any:
            if not isinstance(batch, torch.Tensor):
                batch = training_loop.collated(batch)
            return training_loop.as_arrays(net.infer(batch))

        with (
            torch_state.one_torch_thread(),
            torch.inference_mode(),
            torch_state.repeatable_kernels(),
        ):
            net.module_.eval()
            yield infer

    # Checkpoints --------------------------------------------------------------------------------

    def _run_folder(self, digest: Any, groups: Any) -> Path | None:
        """Name the folder of this training by a hash of its parameters and cases."""
        checkpoint = self._settings.checkpoint
        if checkpoint is None:
            return None
        parameters = self._run_parameters()
        for name in _NOT_OF_RUN.intersection(parameters):
            del parameters[name]
        # Only a number identifies a training; otherwise the seed is read from its state.
        seed = patients = None
        if isinstance(self.random_state, int | np.integer):
            seed = int(self.random_state)
        if groups is not None:
            patients = [str(group) for group in groups]
        optimizer, options = self._optimizer()
        run = [parameters, seed, patients, optimizer.__name__, repr(options)]
        digest = digest.copy()
        digest.update(json.dumps(run, sort_keys=True).encode())
        return Path(checkpoint) / f"{type(self).__name__}-{digest.hexdigest()}"

    def _run_parameters(self) -> dict[str, Any]:
        """Return parameters as JSON, with the fields of the training among them."""
        parameters = self._plain()
        parameters.pop("training", None)
        parameters |= self._settings.get_params()
        del parameters["after_epoch"]
        if parameters["checkpoint"] is not None:
            parameters["checkpoint"] = str(parameters["checkpoint"])
        return {name: encoded(value, name) for name, value in parameters.items()}

    def _plain(self) -> dict[str, Any]:
        """Return the parameters, with None for a generator as random state."""
        parameters = self.get_params(deep=False)
        if isinstance(parameters.get("random_state"), np.random.RandomState):
            parameters["random_state"] = None
        return parameters

    def _resumed_seed(self, header: Mapping[str, Any], folder: Path) -> Seed:
        """Check that a training can resume from a state, and return its seed."""
        if header.get("format") != _FORMAT:
            raise ValueError(
                f"{folder} was written by another version; remove it to train from the beginning"
            )
        n_done = len(header["history"])
        for epoch, row in enumerate(header["history"]):
            # A cosine schedule of another length would have learned at other rates from the first
            # epoch on.
            if row["learning_rate"] != self._learning_rate(epoch):
                n_planned = header["parameters"]["epochs"]
                raise ValueError(
                    f"{folder} holds {counted(n_done, 'epoch')} of a training of {n_planned} with "
                    f"the schedule {self._settings.schedule!r}, which depends on their number; go "
                    f"on with epochs={n_planned}, or {_AFRESH}"
                )
        if n_done > self._settings.epochs:
            raise ValueError(
                f"{folder} holds {counted(n_done, 'epoch')} already, more than "
                f"epochs={self._settings.epochs}; raise epochs, or {_AFRESH}"
            )
        return Seed(header["seed"])

    # Model files --------------------------------------------------------------------------------

    def stored(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
        """
        Return the content of a model file: parameters, fitted attributes and weights.

        Returns
        -------
        parameters : dict
            Of the constructor; the training is a dictionary of the fields that are set.
        fitted : dict
            Fitted attributes.
        files : dict of bytes
            The weights in the format of safetensors.
        """
        check_is_fitted(self)
        from dmrifit.networks.checkpoints import packed

        parameters = self._plain()
        parameters["training"] = stored_training(self.training)
        state = self.net_.module_.state_dict()
        return parameters, self._fitted_state(), {_WEIGHTS: packed(state)}

    def restore(self, fitted: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """
        Restore the content that `stored` returned; a missing device becomes the CPU.

        Parameters
        ----------
        fitted : mapping
            Fitted attributes.
        files : mapping of bytes
            The weights.

        Raises
        ------
        ValueError
            If something is missing or unknown, or does not fit.
        """
        import_optional("torch", "skorch")
        import torch
        from safetensors.torch import load

        from dmrifit._utils import torch_state
        from dmrifit.networks import checkpoints

        refuse_keys(files, {_WEIGHTS}, "file", complete=True)
        self.training = read_training(self.training)
        self._check()
        self._restore_fitted(fitted)
        self._check_restored()
        device = torch_state.resolve_device(self.device, fallback=True)
        if self.device != "auto" and device.type == "cpu":
            self.device = "cpu"
        weights = load(files[_WEIGHTS])
        # Even on the meta device, a file could ask for so many layers that memory runs out.
        if max(int(getattr(self, name, 0)) for name in ("depth", "levels")) > len(weights):
            raise ValueError(
                f"its network has more levels than its {counted(len(weights), 'weight')}"
            )
        # Before memory is allocated: a damaged file could ask for a network of any size.
        with torch.device("meta"):
            checkpoints.check_weights(self._module(), weights)
        net = self._new_net(device, 0)
        checkpoints.load_weights(net.module_, weights)
        checkpoints.set_history(net, self.history_)
        self.net_ = net
