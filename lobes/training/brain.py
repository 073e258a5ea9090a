"""The Brain: trains, validates and tests one encoder with any set of tasks."""

import contextlib
import logging
import signal
import time
from typing import Any

import speechbrain as sb
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils import checkpoints
from speechbrain.utils.distributed import if_main_process

from lobes.data.audio import SAMPLE_RATE
from lobes.data.evaluation_sets import EvaluationStream, open_sets
from lobes.data.leaks import check_leaks
from lobes.data.prepared import record_test_sets
from lobes.data.streams import TrainStream
from lobes.data.utterances import Batch
from lobes.errors import UserError
from lobes.evaluation.ending import COMPLETE, DEBUG, DIVERGED, STEP_LIMIT, Ending
from lobes.evaluation.plots import plot_curves
from lobes.evaluation.progress import ProgressLog, StepAverages
from lobes.system import distributed, preemption
from lobes.system.terminal import progress_bar
from lobes.training.checkpoints import Checkpointer, RandomState
from lobes.training.faults import continuable, enough_memory
from lobes.training.initial_weights import load_initial_weights
from lobes.training.nonfinite_guard import NonFiniteGuard
from lobes.training.stopping import selection_score

logger = logging.getLogger(__name__)

#: Graphs that a function of a compiled encoder may have: frozen or not, padded or
#: not, with a gradient or not.
RECOMPILE_LIMIT = 32

#: One batch of each task in a step.
Batches = dict[str, Batch]


@checkpoints.register_checkpoint_hooks
class SpeechSpeakerBrain(sb.Brain):
    """Trains and evaluates one encoder with any set of tasks.

    A step takes ``{task: Batch}`` with any of the tasks: all in multi-task training,
    one in single-task training and in evaluation. A batch that stands under several
    tasks is encoded once.

    Arguments:
        hparams: The loaded YAML. Used here: ``encoder``, ``tasks``, ``weighting``,
            ``opt_class``, ``schedule``, ``freeze_steps``, ``steps``,
            ``valid_interval``, ``epoch_counter``, ``stopping``, ``train_streams``,
            ``valid_sets``, ``test_sets``, ``allow_leaks``, ``selection``,
            ``train_logger``, ``log_interval``, ``tensorboard``, ``output_folder``,
            ``init_from``, ``checkpoints_to_keep``.
        run_opts (dict): SpeechBrain's run options, and ``allow_changes``
            (``lobes.runs.experiment``).

    Attributes:
        ending (lobes.evaluation.ending.Ending or None): How the training ended, once
            ``fit`` has returned.
    """

    def __init__(
        self,
        hparams: dict[str, Any],
        run_opts=None,
        checkpointer: Checkpointer | None = None,
    ):
        self.tasks = hparams["tasks"]
        modules = {"encoder": hparams["encoder"], "weighting": hparams["weighting"]}
        if clash := set(modules) & set(self.tasks):
            raise UserError(f"tasks: {', '.join(clash)} cannot be a task's name")
        by_steps = "ckpt_interval_steps"
        if getattr(run_opts, by_steps, 0) or hparams.get(by_steps):
            # SpeechBrain allows only one of the two.
            hparams["ckpt_interval_minutes"] = 0
        try:
            super().__init__(
                modules={**modules, **self.tasks},
                opt_class=hparams["opt_class"],
                hparams=hparams,
                run_opts=run_opts,
                checkpointer=checkpointer,
            )
        except (ValueError, RuntimeError, AssertionError) as error:
            # The device is not there, or it cannot compute in that precision.
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{reason} (choose another --device or --precision)"
            ) from error
        if self.device_type == "cuda":
            # cuDNN's attention plans anew for every shape, and ours hardly ever
            # repeat. torch 2.11 prefers it on an H100 or H200.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.rank, self.world_size = distributed.rank_and_world_size()
        self.allow_changes = bool((run_opts or {}).get("allow_changes"))
        self.guard = NonFiniteGuard(self.nonfinite_patience, hparams["output_folder"])
        self.bar = progress_bar("training", None, disable=True)
        self.ending = None
        self.train_metrics = {}
        self._step_means, self._step_ids = {}, {}
        self._shown = {}
        self._signal = 0
        self._train_stream = None
        if checkpointer is not None:
            stateful = {n: m for n, m in self.modules.items() if m.state_dict()}
            checkpointer.add_recoverables(stateful)
            checkpointer.add_recoverable("epochs", hparams["epoch_counter"])
            checkpointer.add_recoverable("stopping", hparams["stopping"])
            checkpointer.add_recoverable("random_state", RandomState())

    # Training ---------------------------------------------------------------

    def train(self) -> None:
        """Train from the last checkpoint, if any, to the end; see ``fit``."""
        train_stream, valid_stream = self.prepare_training(), self.prepare_validation()
        self.fit(self.hparams.epoch_counter, train_stream, valid_stream)

    def prepare_training(self) -> TrainStream:
        """Do what comes before ``fit``, and return the batches for it.

        Opens the training streams and lets the tasks prepare for them, loads the
        weights that ``init_from`` names, and registers the stream with the
        checkpointer. Raises ``UserError`` when the data do not fit a task.
        """
        hparams, parts = self.hparams, self.grad_accumulation_factor
        limit = self.optimizer_step_limit
        # Joint training puts one stream under several tasks.
        for stream in {id(s): s for s in hparams.train_streams.values()}.values():
            stream.open(self.rank, self.world_size, parts)
        for task, stream in hparams.train_streams.items():
            self.tasks[task].prepare(stream, hparams.encoder)
        if hparams.init_from:
            load_initial_weights(hparams.init_from, self.modules)
        if hparams.freeze_steps >= hparams.steps:
            logger.warning(
                "freeze_steps (%d) is not below steps (%d): the encoder never trains",
                hparams.freeze_steps,
                hparams.steps,
            )
        self._train_stream = TrainStream(
            hparams.train_streams,
            hparams.steps * parts,
            hparams.valid_interval * parts,
            pin_memory=self.device_type == "cuda",
            batches_per_step=parts,
            valid_sets=hparams.valid_sets,
            allow_changes=self.allow_changes,
            output_folder=hparams.output_folder,
            limit=None if limit is None else limit * parts,
        )
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("train_stream", self._train_stream)
        return self._train_stream

    def prepare_validation(self) -> EvaluationStream:
        """Open the validation sets; returns their batches, one task after another."""
        return self._evaluation_stream(self.hparams.valid_sets.items(), "validating")

    def fit(self, epoch_counter, train_set, valid_set=None, progressbar=None, **kwargs):
        """Train as ``speechbrain.Brain.fit`` does, under one bar for the whole run.

        The bar counts optimizer steps. It shows the losses, and the metrics of the
        last validation. Raises ``UserError`` when a file cannot be written, and
        ``lobes.system.preemption.Preempted`` after a signal, with a checkpoint saved.
        """
        wanted = not self.noprogressbar if progressbar is None else progressbar
        self.bar = progress_bar(
            "training",
            self.hparams.steps,
            "step",
            colour=self.tqdm_barcolor["train"] or None,
            disable=not (wanted and if_main_process()),
        )
        told = continuable(self.hparams.output_folder)
        with self.bar, preemption.at_steps(), told:
            try:
                super().fit(
                    epoch_counter, train_set, valid_set, progressbar=False, **kwargs
                )
            except RuntimeError:
                # Another process may have stopped in the validation, where this one
                # waited for it.
                if self.world_size > 1 and self._train_stream.ended:
                    self._stop_after(preemption.requested())
                raise
            finally:
                # The interpreter would wait for the loading processes at its end.
                for stream in (train_set, valid_set):
                    if stream is not None:
                        stream.close()
            if preemption.requested():
                # The last checkpoint is saved: only the test is left.
                raise preemption.Preempted
        if not self.test_only:
            self.ending = self._ending()

    def _ending(self):
        """How the training ended. An evaluation goes back to an earlier state."""
        stopping = self.hparams.stopping
        if self.optimizer_step >= self.hparams.steps and stopping.kind != DIVERGED:
            kind = COMPLETE
        elif stopping.kind is not None:
            kind = stopping.kind
        else:
            kind = STEP_LIMIT if self._optimizer_step_limit_exceeded else DEBUG
        return Ending(kind, self.optimizer_step, self.hparams.steps, stopping.reason)

    def on_fit_start(self) -> None:
        """Recover the last checkpoint, if any, and start the progress log."""
        super().on_fit_start()
        if self._train_stream is not None:
            # The checkpoint counts the batches of the run as it was then.
            self.step = self._train_stream.step
        folder = self.hparams.output_folder
        self.progress = ProgressLog(folder, self.hparams.tensorboard)
        if if_main_process():
            self.progress.rewind(self.optimizer_step)
        self.averages = StepAverages()
        for group in self.optimizer.param_groups:
            # The checkpoint's optimizer has brought its old settings.
            defaults = self.optimizer.defaults
            group.update({name: defaults[name] for name in defaults if name != "lr"})
        self.bar.update(self.optimizer_step)
        if self.optimizer_step:
            logger.info("Resuming after optimizer step %d", self.optimizer_step)

    def _compile(self):
        """Compile as ``--compile`` asks; by default only the encoder repays it."""
        if self.compile:
            if self.compile_module_keys is None:
                self.compile_module_keys = ["encoder"]
            # SpeechBrain's default is False: every new length would compile anew, and
            # after a few torch would silently compile no more.
            if not self.compile_using_dynamic_shape_tracing:
                self.compile_using_dynamic_shape_tracing = None
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        super()._compile()

    def _wrap_distributed(self):
        """Start all processes from the same weights (``lobes.system.distributed``)."""
        distributed.broadcast_parameters(self.modules)
        distributed.spread_random_state()

    def init_optimizers(self) -> None:
        """Make one optimizer for all that ever trains; a frozen CNN never does."""
        frozen = set(self.hparams.encoder.never_trained())
        self.parameters = [p for p in self.modules.parameters() if p not in frozen]
        self.guard.buffers = list(self.modules.buffers())
        self.optimizer = self.opt_class(self.parameters)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def on_device(self, batches: Batches) -> Batches:
        """The batches on this device; a shared batch stays one object."""
        distinct = {id(batch): batch for batch in batches.values()}
        moved = {key: batch.to(self.device) for key, batch in distinct.items()}
        return {task: moved[id(batch)] for task, batch in batches.items()}

    def compute_forward(self, batches: Batches, stage) -> dict[str, Any]:
        """Each task's output for its batch, which is ``on_device``."""
        outputs = {}
        for batch in {id(batch): batch for batch in batches.values()}.values():
            tasks = [task for task, other in batches.items() if other is batch]
            # torch's compiler carries a tuple over a break of its graph, but no set.
            views = [view for task in tasks for view in self.modules[task].need]
            need = tuple(dict.fromkeys(views))
            frames = self.modules.encoder(batch.wavs, batch.lengths, need)
            # Heads, poolings and losses always compute in float32: CTC and AAM lose
            # their gradients in half precision.
            with torch.autocast(self.device_type, enabled=False):
                for task in tasks:
                    outputs[task] = self.modules[task](frames)
        return outputs

    def compute_objectives(
        self, outputs: dict[str, Any], batches: Batches, stage
    ) -> torch.Tensor:
        """Weighted total of the losses of the tasks present (paper eq. 2)."""
        with torch.autocast(self.device_type, enabled=False):
            losses = {
                task: self.modules[task].loss(output, batches[task])
                for task, output in outputs.items()
            }
            counts = {task: len(batch) for task, batch in batches.items()}
            losses = distributed.global_losses(losses, counts)
            if stage == sb.Stage.TRAIN and self.grad_accumulation_factor > 1:
                for task, loss in losses.items():
                    # A step's gradient is the mean over its utterances, not over its
                    # batches: weight the gradient of the loss, but not its value.
                    share = batches[task].share * self.grad_accumulation_factor
                    weighted = loss * share
                    losses[task] = weighted + (loss - weighted).detach()
            total, weights = self.modules.weighting(losses, self.optimizer_step)
        self.step_values = {
            **{f"{task}_loss": loss.detach() for task, loss in losses.items()},
            **{f"{task}_weight": w.detach() for task, w in weights.items()},
        }
        return total

    def fit_batch(self, batches: Batches) -> torch.Tensor:
        """Forward every task, backward once, step once; returns the loss.

        With accumulation a step has several batches. A task's gradient is then that of
        its mean loss over all utterances of the step.
        """
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batches, should_step)
        if not self._step_means:
            self.guard.remember_buffers()
        with self._enough_memory(batches):
            batches = self.on_device(batches)
            with self.training_ctx:
                outputs = self.compute_forward(batches, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batches, sb.Stage.TRAIN)
            self.scaler.scale(loss / self.grad_accumulation_factor).backward()
        self._collect(batches)
        if should_step:
            # Adam allocates the encoder's moments at the first step after the thaw.
            with self._enough_memory(batches):
                self.optimizers_step()
        self.on_fit_batch_end(batches, outputs, loss, should_step)
        if should_step:
            self._stop_after(self._signal)
        return loss.detach()

    def _collect(self, batches):
        """Add a batch's losses, weights and utterances to those of its step."""
        for name, value in self.step_values.items():
            value = value * batches[name.rpartition("_")[0]].share
            self._step_means[name] = self._step_means.get(name, 0.0) + value
        for task, batch in batches.items():
            self._step_ids[task] = self._step_ids.get(task, []) + batch.ids

    def _enough_memory(self, batches):
        return enough_memory(self.optimizer_step, batches, self.hparams.output_folder)

    def _stop_after(self, number):
        """After a signal (0: there was none) save the state, and end the process."""
        if not number:
            return
        if self.checkpointer is not None:
            self._save_intra_epoch_ckpt()
        logger.warning(
            "%s: stopped after step %d, which is saved; the same command continues",
            signal.Signals(number).name,
            self.optimizer_step,
        )
        raise preemption.Preempted

    def on_fit_batch_start(self, batches, should_step) -> None:
        """Freeze the encoder before step ``freeze_steps``, and thaw it then."""
        frozen = self.optimizer_step < self.hparams.freeze_steps
        self.hparams.encoder.freeze(frozen)

    def optimizers_step(self) -> None:
        """Update the weights, unless a gradient is not finite (``guard``).

        Raises ``DivergedError`` when more than ``nonfinite_patience`` steps were
        skipped.
        """
        rate = self.hparams.schedule(self.optimizer_step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        asked = preemption.requested()
        self._signal = distributed.average_gradients(self.parameters, asked)
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(
                self.parameters, self.max_grad_norm, norm
            )
        means = self._step_means
        losses = {name: v for name, v in means.items() if name.endswith("_loss")}
        step, ids = self.optimizer_step, self._step_ids
        self.guard.update(self.optimizer, self.scaler, norm, losses, step, ids)
        self.optimizer.zero_grad(set_to_none=True)
        self.step_values = {**means, "lr": rate}
        self._step_means, self._step_ids = {}, {}
        self.optimizer_step += 1
        self.guard.count_if_due()

    def on_fit_batch_end(self, batches, outputs, loss, should_step) -> None:
        """Collect what the progress log averages; write it every interval."""
        distinct = {id(batch): batch for batch in batches.values()}.values()
        seconds = sum(int(batch.lengths.sum()) / SAMPLE_RATE for batch in distinct)
        values = self.step_values if should_step else {}
        self.averages.add(values, seconds * self.world_size, should_step)
        self.bar.update(should_step)
        if should_step and self.optimizer_step % self.hparams.log_interval == 0:
            self._write_progress()

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """Decide as SpeechBrain does, but never between two accumulated batches.

        No checkpoint holds their gradients: a resumed run would lose them. Several
        processes count the same steps. They agree about the time over the host, where
        SpeechBrain would wait for the GPU in each step.
        """
        if self.step % self.grad_accumulation_factor:
            return False
        # SpeechBrain counts the batches of a step.
        steps_since_ckpt //= self.grad_accumulation_factor
        if self.ckpt_interval_minutes > 0:  # __init__ lets steps win over minutes
            minutes = (time.time() - last_ckpt_time) / 60
            return distributed.of_first_process(minutes > self.ckpt_interval_minutes)
        return 0 < self.ckpt_interval_steps <= steps_since_ckpt

    def _save_intra_epoch_ckpt(self):
        """Save between two validations; keep the newest ones."""
        self.guard.count()
        self.checkpointer.save_and_keep_only(
            meta={INTRA_EPOCH_CKPT_FLAG: True, "step": self.optimizer_step},
            end_of_epoch=False,
            num_to_keep=self.hparams.checkpoints_to_keep,
            ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta,
            verbosity=logging.DEBUG,
        )

    def _write_progress(self):
        """Write a row of the progress log: the means since the last one."""
        if not self.averages.values:
            return
        self.guard.count()
        means = self.averages.means()
        means["skipped_steps"] = self.guard.skipped_steps
        self.averages.reset()
        self.train_metrics = means
        losses = {n: v for n, v in means.items() if n.endswith("_loss")}
        self.avg_train_loss = sum(losses.values())
        self._show(losses)
        if if_main_process():
            self.progress.add("train", self.optimizer_step, means)

    def _show(self, values):
        """Put numbers behind the progress bar; the others there stay."""
        self._shown.update({n: f"{v:.3g}" for n, v in values.items()})
        # The next step draws them: in a log each drawing is a line.
        self.bar.set_postfix(self._shown, refresh=False)

    def update_average(self, loss, avg_loss):
        """Leave the average alone: ``_write_progress`` sets it without waiting."""
        return avg_loss

    # Validation and test ----------------------------------------------------

    def on_stage_start(self, stage, epoch=None) -> None:
        """Forget what the tasks collected in the last evaluation."""
        if stage == sb.Stage.TRAIN:
            self.averages.reset()
        else:
            for task in self.tasks.values():
                task.start()

    @torch.no_grad()
    def evaluate_batch(self, batches: Batches, stage) -> torch.Tensor:
        """Let the tasks present collect one batch; the loss that it returns is 0."""
        if stage == sb.Stage.VALID:
            # The stream stands at its epoch's end: the resumed run validates anew.
            self._stop_after(preemption.requested())
        with self._enough_memory(batches):
            batches = self.on_device(batches)
            with self.evaluation_ctx:
                outputs = self.compute_forward(batches, stage)
            for task, output in outputs.items():
                self.modules[task].update(output, batches[task])
        return torch.zeros(())

    def on_stage_end(self, stage, stage_loss, epoch=None) -> None:
        """After validation: metrics, selection score, log, checkpoint."""
        if stage == sb.Stage.TRAIN:
            self._write_progress()
        if stage != sb.Stage.VALID or self.debug:
            return
        # Look for a signal before the processes wait for one another.
        self._stop_after(preemption.requested())
        selection = self.hparams.selection
        metrics = {}
        for task, evaluation_set in self.hparams.valid_sets.items():
            results = self.tasks[task].results("valid", evaluation_set)
            for values in results.values():
                metrics.update(values)
        metrics["score"] = selection_score(metrics, selection)
        reason = self.hparams.stopping.update(self.optimizer_step, metrics)
        # The counts behind the metrics stand in progress.jsonl only.
        told = (*selection, "cer", "score")
        shown = {n: v for n, v in metrics.items() if n in told or "_loss" in n}
        self._show({n: metrics[n] for n in selection if n in metrics})
        if if_main_process():
            self.progress.add("valid", self.optimizer_step, metrics)
            training, validation = self.progress.tables()
            curves = f"{self.hparams.output_folder}/curves.png"
            plot_curves(curves, training, validation[["step", *shown]])
        self.hparams.train_logger.log_stats(
            {"epoch": epoch, "step": self.optimizer_step},
            train_stats=self.train_metrics,
            valid_stats=shown,
        )
        self._save_checkpoint({n: metrics[n] for n in told if n in metrics})
        if reason is not None:
            logger.warning("Stopping at step %d: %s", self.optimizer_step, reason)

    def _save_checkpoint(self, metrics):
        """Save after a validation; keep the best one and this one."""
        if self.checkpointer is None:
            return
        self.checkpointer.save_and_keep_only(
            meta={**metrics, "step": self.optimizer_step},
            # --optimizer_step_limit may have ended the epoch before its last batch:
            # a run that goes on from here does the rest of it.
            end_of_epoch=self._train_stream.ended,
            num_to_keep=self.hparams.checkpoints_to_keep,
            min_keys=["score"],
            importance_keys=[],
        )

    def open_sets(self) -> None:
        """Open the sets of training, validation and test: no fault may show after days.

        The run's folder notes what the test sets hold, for later evaluations
        (``lobes.data.prepared``). Raises ``UserError`` for all that is wrong with any
        set, and for leaks between them.
        """
        hparams = self.hparams
        sets = hparams.train_streams, hparams.valid_sets, hparams.test_sets
        open_sets(*sets, self.rank, self.world_size)
        check_leaks(*sets, allowed=hparams.allow_leaks)
        if if_main_process():
            record_test_sets(hparams.output_folder, hparams.test_sets)

    def test(self, test_sets: dict, folder: str) -> dict[str, dict[str, dict]]:
        """Evaluate the current weights on ``{task: {name: EvaluationSet}}``.

        Returns ``{task: {set or trial list: {metric: value}}}``. The alignments and
        scores go into ``folder``.
        """
        results = {task: {} for task in test_sets}
        folder = folder if if_main_process() else None
        for task, sets in test_sets.items():
            for name, evaluation_set in sets.items():
                opened = self._evaluation_stream(
                    [(task, evaluation_set)], f"{name}: testing"
                )
                with contextlib.closing(opened) as stream:
                    self.evaluate(stream, progressbar=False)
                metrics = self.tasks[task].results(name, evaluation_set, folder)
                results[task].update(metrics)
        return results

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Keep the current weights: ``lobes.runs.evaluate`` chose the checkpoint."""

    def _evaluation_stream(self, sets, title):
        """Open the evaluation sets and chain them, under a bar of that title."""
        sets = list(sets)
        for _, evaluation_set in sets:
            evaluation_set.open(self.rank, self.world_size)
        shown = if_main_process() and not self.noprogressbar
        return EvaluationStream(
            sets, self.device_type == "cuda", title if shown else None
        )

    # Checkpoints ------------------------------------------------------------

    @checkpoints.mark_as_saver
    def _save(self, path):
        super()._save(path)
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(f"skipped_steps: {self.guard.skipped_steps}\n")

    @checkpoints.mark_as_loader
    def _recover(self, path, end_of_epoch):
        super()._recover(path, end_of_epoch)
        with open(path, encoding="utf-8") as stream:
            lines = dict(line.split(":", 1) for line in stream if ":" in line)
        self.guard.skipped_steps = int(lines["skipped_steps"])
