"""The Brain: one step over whatever tasks its batch holds."""

import contextlib
import logging
import math
import signal
import time

import speechbrain as sb
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm

from lobes.data.audio import SAMPLE_RATE
from lobes.data.evaluation_sets import EvaluationStream, open_sets
from lobes.data.leaks import check_leaks
from lobes.data.prepared import record_test_sets
from lobes.data.streams import TrainStream
from lobes.errors import DivergedError, UserError
from lobes.evaluation.ending import COMPLETE, DEBUG, DIVERGED, STEP_LIMIT, Ending
from lobes.evaluation.plots import plot_curves
from lobes.evaluation.progress import ProgressLog, StepAverages
from lobes.system import preemption
from lobes.system.distributed import (
    average_gradients,
    broadcast_parameters,
    global_losses,
    of_first_process,
    rank_and_world_size,
    spread_random_state,
)
from lobes.training.checkpoints import RandomState
from lobes.training.initial_weights import load_initial_weights

logger = logging.getLogger(__name__)

#: Steps between two looks at the guard against non-finite gradients, where each of
#: them would wait for an accelerator. The weights are safe in between.
GUARD_INTERVAL = 20

#: Graphs of one function of a compiled encoder.
RECOMPILE_LIMIT = 32


@register_checkpoint_hooks
class SpeechSpeakerBrain(sb.Brain):
    """Trains and evaluates one encoder with any set of tasks.

    A batch is ``{task: Batch}`` with any non-empty subset of the tasks: both in
    multi-task training, one in single-task training and in evaluation. A batch
    object that stands under several tasks is encoded once.

    Arguments
    ---------
    hparams : dict
        The loaded YAML. Used here: ``encoder``, ``tasks``, ``weighting``,
        ``opt_class``, ``schedule``, ``freeze_steps``, ``steps``,
        ``valid_interval``, ``epoch_counter``, ``stopping``, ``train_streams``,
        ``valid_sets``, ``selection``, ``train_logger``, ``log_interval``,
        ``tensorboard``, ``output_folder``, ``init_from``, ``checkpoints_to_keep``.
    run_opts : dict
        SpeechBrain's run options, and ``allow_changes`` (``lobes.runs.experiment``).
    checkpointer : lobes.training.checkpoints.Checkpointer or None
    """

    def __init__(self, hparams, run_opts=None, checkpointer=None):
        self.tasks = hparams["tasks"]
        modules = {"encoder": hparams["encoder"], "weighting": hparams["weighting"]}
        clash = set(modules) & set(self.tasks)
        if clash:
            raise UserError(f"tasks: {', '.join(clash)} cannot be a task's name")
        if getattr(run_opts, "ckpt_interval_steps", 0) or hparams.get(
            "ckpt_interval_steps"
        ):
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
            # A device that is not there, or a precision that it cannot compute in.
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{reason} (choose another --device or --precision)"
            ) from error
        if self.device_type == "cuda":
            # cuDNN's attention, which torch 2.11 prefers on an H100 or H200, plans anew
            # for every shape, and ours hardly ever repeat.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self.rank, self.world_size = rank_and_world_size()
        self.allow_changes = bool((run_opts or {}).get("allow_changes"))
        self.skipped_steps = 0
        self._unread_guards = []
        self._step_means = {}
        self._signal = 0
        self.train_metrics = {}
        self.batch_ids = {}
        self.bar = tqdm(disable=True)
        self.shown = {}
        self.ending = None
        self._train_stream = None
        if checkpointer is not None:
            stateful = {n: m for n, m in self.modules.items() if m.state_dict()}
            checkpointer.add_recoverables(stateful)
            checkpointer.add_recoverable("epochs", hparams["epoch_counter"])
            checkpointer.add_recoverable("stopping", hparams["stopping"])
            checkpointer.add_recoverable("random_state", RandomState())

    # Training ---------------------------------------------------------------

    def train(self):
        """Train from the last checkpoint, if any, to the end; see ``fit``."""
        train_stream, valid_stream = self.prepare_training(), self.prepare_validation()
        self.fit(self.hparams.epoch_counter, train_stream, valid_stream)

    def prepare_training(self):
        """The opened training stream, shown to the tasks, as a recoverable."""
        streams = self.hparams.train_streams
        opened = {}
        for task, stream in streams.items():
            # Joint training puts one stream under several tasks.
            if id(stream) not in opened:
                parts = self.grad_accumulation_factor
                stream.open(self.rank, self.world_size, parts)
                opened[id(stream)] = stream
            self.tasks[task].prepare(stream, self.hparams.encoder)
        if self.hparams.init_from:
            load_initial_weights(self.hparams.init_from, self.modules)
        batches = self.hparams.valid_interval * self.grad_accumulation_factor
        if self.hparams.freeze_steps >= self.hparams.steps:
            logger.warning(
                "freeze_steps (%d) is not below steps (%d): the encoder never trains",
                self.hparams.freeze_steps,
                self.hparams.steps,
            )
        stream = TrainStream(
            streams,
            self.hparams.steps * self.grad_accumulation_factor,
            batches,
            pin_memory=self.device_type == "cuda",
            batches_per_step=self.grad_accumulation_factor,
            valid_sets=self.hparams.valid_sets,
            allow_changes=self.allow_changes,
            output_folder=self.hparams.output_folder,
        )
        if self.optimizer_step_limit is not None:
            stream.limit = self.optimizer_step_limit * self.grad_accumulation_factor
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("train_stream", stream)
        self._train_stream = stream
        return stream

    def prepare_validation(self):
        """The opened validation sets of all tasks, one after another."""
        return self._evaluation_stream(self.hparams.valid_sets.items(), "validating")

    def fit(self, epoch_counter, train_set, valid_set=None, progressbar=None, **kwargs):
        """Train as ``speechbrain.Brain.fit`` does, under one bar for the whole run.

        The bar counts optimizer steps and shows the losses, and the metrics of the
        last validation as they fall. ``ending`` then holds how it ended
        (``lobes.evaluation.ending.Ending``). Raises ``UserError`` when a file cannot be
        written, and ``lobes.system.preemption.Preempted`` after a signal, with a
        checkpoint saved.
        """
        wanted = not self.noprogressbar if progressbar is None else progressbar
        self.bar = tqdm(
            total=self.hparams.steps,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            colour=self.tqdm_barcolor["train"] or None,
            disable=not (wanted and if_main_process()),
        )
        with self.bar, preemption.at_steps():
            try:
                super().fit(
                    epoch_counter, train_set, valid_set, progressbar=False, **kwargs
                )
            except RuntimeError as error:
                if preemption.LOADER_DIED in str(error):
                    raise UserError(
                        f"{str(error).strip().splitlines()[0]} (or it ran out of "
                        "memory: lower --num_workers); the same command continues from "
                        "the last checkpoint"
                    ) from error
                # Another process stopped in the validation while this one waited.
                if self.world_size > 1 and self._train_stream.ended:
                    self._preempt_between_steps()
                raise
            except OSError as error:
                raise UserError(
                    f"{error.filename or self.hparams.output_folder}: "
                    f"{error.strerror or error}; the same command continues from the "
                    "last checkpoint"
                ) from error
            finally:
                # Not left to the interpreter's end, which would wait for them.
                for stream in (train_set, valid_set):
                    if stream is not None:
                        stream.close()
            if preemption.requested():
                # It came with the last checkpoint: all that is left is the test.
                raise preemption.Preempted
        if not self.test_only:
            self.ending = self._ending()

    def _ending(self):
        """How the training ended; an evaluation loads an earlier state of it."""
        stopping = self.hparams.stopping
        if self.optimizer_step >= self.hparams.steps and stopping.kind != DIVERGED:
            kind = COMPLETE
        elif stopping.kind is not None:
            kind = stopping.kind
        else:
            kind = STEP_LIMIT if self._optimizer_step_limit_exceeded else DEBUG
        return Ending(kind, self.optimizer_step, self.hparams.steps, stopping.reason)

    def on_fit_start(self):
        """Recover the last checkpoint, if any, and start the progress log."""
        super().on_fit_start()
        if self._train_stream is not None:
            # The checkpoint's own count is in batches of the run as it was then.
            self.step = self._train_stream.step
        folder = self.hparams.output_folder
        self.progress = ProgressLog(folder, self.hparams.tensorboard)
        if if_main_process():
            self.progress.rewind(self.optimizer_step)
        self.averages = StepAverages()
        for group in self.optimizer.param_groups:
            # The checkpoint's optimizer brings the settings it had.
            defaults = self.optimizer.defaults
            group.update({name: defaults[name] for name in defaults if name != "lr"})
        self.bar.update(self.optimizer_step)
        if self.optimizer_step:
            logger.info("Resuming after optimizer step %d", self.optimizer_step)

    def _compile(self):
        """Compile as ``--compile`` asks, by default the encoder alone.

        The heads are too small to repay it.
        """
        if self.compile:
            if self.compile_module_keys is None:
                self.compile_module_keys = ["encoder"]
            # Not False, SpeechBrain's default: every new length would compile anew,
            # and after a few nothing would be compiled any more, without a word.
            if not self.compile_using_dynamic_shape_tracing:
                self.compile_using_dynamic_shape_tracing = None
            # Frozen or not, padded or not, with a gradient or not: each some graphs.
            torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        super()._compile()

    def _wrap_distributed(self):
        """Start all processes from the same weights (``lobes.system.distributed``)."""
        broadcast_parameters(self.modules)
        spread_random_state()

    def init_optimizers(self):
        """One optimizer over everything that ever trains (the CNN never does)."""
        frozen = set(self.hparams.encoder.never_trained())
        self.parameters = [p for p in self.modules.parameters() if p not in frozen]
        self._buffers = list(self.modules.buffers())
        self.optimizer = self.opt_class(self.parameters)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def compute_forward(self, batches, stage):
        """Outputs by task for ``{task: Batch}``."""
        groups = {}
        for task, batch in batches.items():
            groups.setdefault(id(batch), []).append(task)
        outputs = {}
        for tasks in groups.values():
            batch = batches[tasks[0]].to(self.device)
            batches.update(dict.fromkeys(tasks, batch))
            # A tuple: torch's compiler carries no set over a break of its graph.
            views = [view for task in tasks for view in self.modules[task].need]
            need = tuple(dict.fromkeys(views))
            frames = self.modules.encoder(batch.wavs, batch.lengths, need)
            # Heads, poolings and losses compute in float32 whatever the encoder's
            # precision: CTC and AAM lose their gradients in half precision.
            with torch.autocast(self.device_type, enabled=False):
                for task in tasks:
                    outputs[task] = self.modules[task](frames)
        return outputs

    def compute_objectives(self, outputs, batches, stage):
        """Weighted total of the losses of the tasks present (paper eq. 2)."""
        with torch.autocast(self.device_type, enabled=False):
            losses = {
                task: self.modules[task].loss(output, batches[task])
                for task, output in outputs.items()
            }
            counts = {task: len(batch) for task, batch in batches.items()}
            losses = global_losses(losses, counts)
            if stage == sb.Stage.TRAIN and self.grad_accumulation_factor > 1:
                losses = {
                    task: self._accumulated(loss, batches[task])
                    for task, loss in losses.items()
                }
            total, weights = self.modules.weighting(losses, self.optimizer_step)
        self.step_values = {
            **{f"{task}_loss": loss.detach() for task, loss in losses.items()},
            **{f"{task}_weight": w.detach() for task, w in weights.items()},
        }
        return total

    def _accumulated(self, loss, batch):
        """The loss of one of a step's batches, its gradient weighted by their size.

        The step's gradient is the mean over its utterances, not over its batches.
        """
        weighted = loss * (batch.share * self.grad_accumulation_factor)
        return weighted + (loss - weighted).detach()

    def fit_batch(self, batches):
        """Forward every task, backward once, step once.

        With accumulation a step has several batches; a task's gradient is then that of
        its mean loss over all utterances of the step.
        """
        should_step = self.step % self.grad_accumulation_factor == 0
        self.on_fit_batch_start(batches, should_step)
        if not self._step_means:
            # A forward pass changes them; a skipped step must not.
            self._buffers_before = [buffer.clone() for buffer in self._buffers]
        with self._enough_memory(batches):
            with self.training_ctx:
                outputs = self.compute_forward(batches, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, batches, sb.Stage.TRAIN)
            self.scaler.scale(loss / self.grad_accumulation_factor).backward()
        self._collect(batches)
        if should_step:
            # Adam makes its moments of the encoder at the first step after the thaw.
            with self._enough_memory(batches):
                self.optimizers_step()
        self.on_fit_batch_end(batches, outputs, loss, should_step)
        if should_step and self._signal:
            self._preempt(self._signal)
        return loss.detach()

    def _collect(self, batches):
        """Add up what a step's batches say of it."""
        for name, value in self.step_values.items():
            value = value * batches[name.rpartition("_")[0]].share
            self._step_means[name] = self._step_means.get(name, 0.0) + value
        for task, batch in batches.items():
            self.batch_ids[task] = self.batch_ids.get(task, []) + batch.ids

    @contextlib.contextmanager
    def _enough_memory(self, batches):
        """Say what did not fit, when it does not."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            words = str(error)
            # torch has a class for it on accelerators only.
            if not (
                isinstance(error, (torch.OutOfMemoryError, MemoryError))
                or "can't allocate memory" in words
            ):
                raise
            shapes = " and ".join(
                f"{task} {list(batch.wavs.shape)}" for task, batch in batches.items()
            )
            raise UserError(
                f"out of memory at step {self.optimizer_step} with the waveforms "
                f"{shapes} [utterances, samples]; lower --max_batch_samples (or "
                "--valid_batch_samples, --test_batch_samples) and raise "
                "--grad_accumulation_factor instead; to continue this run from its "
                "last checkpoint, add --allow_changes "
                f"--output_folder={self.hparams.output_folder}"
            ) from error

    def _preempt(self, number):
        """Save what there is, and end the process."""
        if self.checkpointer is not None:
            self._save_intra_epoch_ckpt()
        logger.warning(
            "%s: stopped after step %d, which is saved; the same command continues",
            signal.Signals(number).name,
            self.optimizer_step,
        )
        raise preemption.Preempted

    def _preempt_between_steps(self):
        """After a signal, stop in a validation, which the resumed run begins anew."""
        if preemption.requested():
            # The training stream stands at its epoch's end.
            self._preempt(preemption.requested())

    def on_fit_batch_start(self, batches, should_step):
        """Freeze or thaw the encoder as the optimizer step asks for."""
        frozen = self.optimizer_step < self.hparams.freeze_steps
        self.hparams.encoder.freeze(frozen)

    def optimizers_step(self):
        """Update the weights, unless a gradient is not finite.

        A step with a non-finite loss or gradient leaves weights, buffers and Adam's
        state as they were; it is counted, and its utterances are logged. The run ends
        with a ``UserError`` when more than ``nonfinite_patience`` were skipped.
        """
        rate = self.hparams.schedule(self.optimizer_step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._signal = average_gradients(self.parameters, preemption.requested())
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(
                self.parameters, self.max_grad_norm, norm
            )
        skipped = ~torch.isfinite(norm)
        for buffer, before in zip(self._buffers, self._buffers_before, strict=True):
            buffer.copy_(torch.where(skipped, before, buffer))
        means = self._step_means.items()
        losses = {name: value for name, value in means if name.endswith("_loss")}
        if self.optimizer.param_groups[0].get("fused") and not self.scaler.is_enabled():
            # The fused kernels look at this themselves: the host does not wait.
            self.optimizer.found_inf = skipped.float()
            self.optimizer.step()
        elif not skipped:
            self.scaler.step(self.optimizer)
        elif self._scale_was_too_high(losses):
            # The scaler takes no step and lowers its scale.
            self.scaler.step(self.optimizer)
            skipped = torch.zeros_like(skipped)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._unread_guards.append(
            (self.optimizer_step, skipped, losses, self.batch_ids)
        )
        self.step_values = {**self._step_means, "lr": rate}
        self._step_means, self.batch_ids = {}, {}
        self.optimizer_step += 1
        if self.device_type == "cpu" or len(self._unread_guards) >= GUARD_INTERVAL:
            self._count_skipped()

    def _scale_was_too_high(self, losses):
        """Whether a gradient overflowed in fp16 although the losses are finite."""
        finite = all(bool(torch.isfinite(loss)) for loss in losses.values())
        return finite and self.scaler.is_enabled() and self.scaler.get_scale() >= 1.0

    def _count_skipped(self):
        """Count and report the steps that were not taken since the last look."""
        guards, self._unread_guards = self._unread_guards, []
        flags = torch.stack([guard[1] for guard in guards]).tolist() if guards else []
        for (step, _, losses, ids), skipped in zip(guards, flags, strict=True):
            if not skipped:
                continue
            self.skipped_steps += 1
            losses = {name: float(loss) for name, loss in losses.items()}
            logger.warning(
                "Step %d skipped (%d so far): a gradient is not finite; losses %s; "
                "utterances %s",
                step,
                self.skipped_steps,
                losses,
                ids,
            )
        if any(flags) and self.skipped_steps > self.nonfinite_patience:
            raise DivergedError(
                f"{self.skipped_steps} steps had gradients that are not finite (see "
                f"{self.hparams.output_folder}/log.txt for the utterances); lower "
                "--lr for a new run, or go on from the last checkpoint with a higher "
                "--nonfinite_patience"
            )

    def on_fit_batch_end(self, batches, outputs, loss, should_step):
        """Collect what the progress log averages; write it every interval."""
        seconds = sum(
            int(batch.lengths.sum()) / SAMPLE_RATE
            for batch in {id(b): b for b in batches.values()}.values()
        )
        values = self.step_values if should_step else {}
        self.averages.add(values, seconds * self.world_size, should_step)
        self.bar.update(should_step)
        if should_step and self.optimizer_step % self.hparams.log_interval == 0:
            self._write_progress()

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """As SpeechBrain decides, but never between two accumulated batches.

        Their gradients are in no checkpoint; a resumed run would lose them. Several
        processes count the same steps; about the time they agree over the host, where
        SpeechBrain's would wait for the GPU each step.
        """
        if self.step % self.grad_accumulation_factor:
            return False
        # SpeechBrain counts the batches of a step.
        steps_since_ckpt //= self.grad_accumulation_factor
        if self.ckpt_interval_minutes > 0:  # then not in steps: __init__
            minutes = (time.time() - last_ckpt_time) / 60
            return of_first_process(minutes > self.ckpt_interval_minutes)
        return 0 < self.ckpt_interval_steps <= steps_since_ckpt

    def _save_intra_epoch_ckpt(self):
        """Save between two validations; keep the newest ones."""
        self._count_skipped()
        self.checkpointer.save_and_keep_only(
            meta={INTRA_EPOCH_CKPT_FLAG: True, "step": self.optimizer_step},
            end_of_epoch=False,
            num_to_keep=self.hparams.checkpoints_to_keep,
            ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta,
            verbosity=logging.DEBUG,
        )

    def _write_progress(self):
        """One row of the progress log: means since the last one."""
        if not self.averages.values:
            return
        self._count_skipped()
        means = self.averages.means()
        means["skipped_steps"] = self.skipped_steps
        self.averages.reset()
        self.train_metrics = means
        losses = {n: v for n, v in means.items() if n.endswith("_loss")}
        self.avg_train_loss = sum(losses.values())
        self._show(losses)
        if if_main_process():
            self.progress.add("train", self.optimizer_step, means)

    def _show(self, values):
        """Put numbers behind the progress bar; the others there stay."""
        self.shown.update({n: f"{v:.3g}" for n, v in values.items()})
        self.bar.set_postfix(self.shown)

    def update_average(self, loss, avg_loss):
        """Leave the average alone: ``_write_progress`` sets it without syncs."""
        return avg_loss

    # Validation and test ----------------------------------------------------

    def on_stage_start(self, stage, epoch=None):
        """Forget what the tasks collected in the last evaluation."""
        self.stage_started = time.perf_counter()
        if stage == sb.Stage.TRAIN:
            self.averages.reset()
        else:
            for task in self.tasks.values():
                task.start()

    @torch.no_grad()
    def evaluate_batch(self, batches, stage):
        """Let the tasks present collect one batch."""
        if stage == sb.Stage.VALID:
            self._preempt_between_steps()
        with self._enough_memory(batches):
            with self.evaluation_ctx:
                outputs = self.compute_forward(batches, stage)
            for task, output in outputs.items():
                self.modules[task].update(output, batches[task])
        return torch.zeros(())

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """After validation: metrics, selection score, log, checkpoint."""
        if stage == sb.Stage.TRAIN:
            self._write_progress()
        if stage != sb.Stage.VALID or self.debug:
            return
        # Before the processes wait for one another.
        self._preempt_between_steps()
        metrics = {}
        for task, evaluation_set in self.hparams.valid_sets.items():
            results = self.tasks[task].results("valid", evaluation_set)
            for values in results.values():
                metrics.update(values)
        score = selection_score(metrics, self.hparams.selection)
        metrics["score"] = score
        reason = self.hparams.stopping.update(self.optimizer_step, metrics)
        # The counts behind the metrics stand in progress.jsonl only.
        told = (*self.hparams.selection, "cer")
        names = [n for n in metrics if n in told or "_loss" in n]
        shown = {name: metrics[name] for name in [*names, "score"]}
        self._show({n: metrics[n] for n in self.hparams.selection if n in metrics})
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
        names = [*told, "score"]
        self._save_checkpoint({n: metrics[n] for n in names if n in metrics})
        if reason is not None:
            logger.warning("Stopping at step %d: %s", self.optimizer_step, reason)

    def _save_checkpoint(self, metrics):
        """Save after a validation; keep the best one and this one."""
        if self.checkpointer is None:
            return
        self.checkpointer.save_and_keep_only(
            meta={**metrics, "step": self.optimizer_step},
            # Not when --optimizer_step_limit ended the epoch before its last batch:
            # a run that goes on from here has the rest of it to do.
            end_of_epoch=self._train_stream.ended,
            num_to_keep=self.hparams.checkpoints_to_keep,
            min_keys=["score"],
            importance_keys=[],
        )

    def open_sets(self):
        """Open the sets of training, validation and test before the training.

        What the test sets hold is noted, for later evaluations
        (``lobes.data.prepared``). A fault in the last of them must not show after days.
        Raises ``UserError`` for all that is wrong with any of them, and for leaks
        between them.
        """
        sets = (
            self.hparams.train_streams,
            self.hparams.valid_sets,
            self.hparams.test_sets,
        )
        open_sets(*sets, self.rank, self.world_size)
        check_leaks(*sets, allowed=self.hparams.allow_leaks)
        if if_main_process():
            record_test_sets(self.hparams.output_folder, self.hparams.test_sets)

    def test(self, test_sets, folder):
        """Evaluate the current weights; details go into ``folder``.

        Arguments
        ---------
        test_sets : dict
            Task name to ``{name: EvaluationSet}``.
        folder : str
            For alignments, scores and figures.

        Returns
        -------
        dict
            ``{task: {set or trial list: {metric: value}}}``
        """
        results = {}
        folder = folder if if_main_process() else None
        for task, sets in test_sets.items():
            results[task] = {}
            for name, evaluation_set in sets.items():
                stream = self._evaluation_stream(
                    [(task, evaluation_set)], f"{name}: testing"
                )
                try:
                    self.evaluate(stream, progressbar=False)
                finally:
                    stream.close()
                found = self.tasks[task].results(name, evaluation_set, folder)
                results[task].update(found)
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

    @mark_as_saver
    def _save(self, path):
        super()._save(path)
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(f"skipped_steps: {self.skipped_steps}\n")

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        super()._recover(path, end_of_epoch)
        with open(path, encoding="utf-8") as stream:
            lines = dict(line.split(":", 1) for line in stream if ":" in line)
        self.skipped_steps = int(lines["skipped_steps"])


def selection_score(metrics, selection):
    """Weighted sum of the selecting metrics; an absent task contributes 0.

    Paper section 4.2: WER / 4 + EER. Raises ``DivergedError`` when a metric is not
    finite: such a checkpoint must never be the best one.
    """
    score = 0.0
    for name, weight in selection.items():
        value = metrics.get(name, 0.0)
        if not math.isfinite(value):
            raise DivergedError(
                f"the validation {name} is {value}; the run has diverged: lower --lr"
            )
        score += weight * value
    return score
