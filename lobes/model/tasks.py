"""The tasks: each owns a head, a loss, and its validation.

The Brain asks these of a task, which is an ``nn.Module``:

``reports``
    Names of the metrics that its evaluation gives. None: they are not known before,
    and ``lobes.runs.names`` cannot find a misspelt one.
``need``
    Views of the encoder's frames that it uses (``lobes.model.encoder.Frames``).
``forward(frames) -> output``
    Whatever its loss and its evaluation take.
``loss(output, batch) -> scalar``
    Mean over the utterances of the batch, float32.
``check_tasks(tasks)``
    Raises ``UserError`` when the system lacks a task that this one needs.
``prepare(stream, encoder)``
    Called once before training with the task's opened stream. A head may start with
    values from its data. Raises ``UserError``, or warns, when the data do not fit.
``start()``, ``update(output, batch)``, ``results(name, evaluation_set, folder)``
    Evaluation: forget, collect one batch, and return ``{name: {metric: value}}``
    over what all processes collected. Details go into ``folder``, if there is one.

``Task`` has all of it but ``need``, ``forward`` and ``loss``.
"""

import io
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import torch
from speechbrain.nnet.losses import AdditiveAngularMargin
from speechbrain.utils.metric_stats import ErrorRateStats
from torch import nn
from torch.nn import functional

from lobes.data.evaluation_sets import EvaluationSet
from lobes.data.labels import Categories
from lobes.data.streams import TaskStream
from lobes.data.trials import write_scores
from lobes.data.utterances import Batch
from lobes.data.vocabulary import Vocabulary, ctc_frames, edit_distances
from lobes.errors import UserError
from lobes.evaluation import verification
from lobes.model.encoder import Frames, Wav2Vec2Encoder
from lobes.system.distributed import gather
from lobes.system.files import write_atomically

logger = logging.getLogger(__name__)

#: Metrics by name of an evaluation set or trial list.
Results = dict[str, dict[str, float]]

# Embeddings whose losses are computed together after a validation.
_CHUNK = 1024


class Task(nn.Module):
    """What most tasks share; a subclass adds ``need``, ``forward`` and ``loss``.

    It also has either ``metrics``, whose values are averaged over the utterances of an
    evaluation set, or its own ``update`` and ``results``.
    """

    reports: tuple[str, ...] | None = None

    def __init__(self):
        super().__init__()
        self.start()

    def check_tasks(self, tasks: dict[str, nn.Module]) -> None:
        """Any system will do."""

    def prepare(self, stream: TaskStream, encoder: nn.Module) -> None:
        """Any training data fit."""

    def start(self) -> None:
        """Forget what was collected."""
        self.collected = {}

    def metrics(self, output, batch: Batch) -> dict:
        """``{metric: value of each utterance}``, tensors or lists of [batch]."""
        raise NotImplementedError(f"{type(self).__name__} has no metrics")

    def update(self, output, batch: Batch) -> None:
        """Keep the metrics of one batch by utterance."""
        for metric, values in self.metrics(output, batch).items():
            for identity, value in zip(batch.ids, values, strict=True):
                self.collected.setdefault(identity, {})[metric] = float(value)

    def results(
        self, name: str, evaluation_set: EvaluationSet, folder: str | None = None
    ) -> Results:
        """Every metric's mean over the utterances."""
        rows = [row for _, row in sorted(gather(self.collected).items())]
        if not rows:
            raise UserError(f"{evaluation_set.csv}: no utterance was evaluated")
        return {name: {m: float(np.mean([row[m] for row in rows])) for m in rows[0]}}


class SpeechRecognition(Task):
    """Letters by CTC on every speech frame (paper sections 2.1 and 4.2).

    A dropout and one linear layer; greedy decoding; corpus-level WER.

    Arguments:
        encoder: Gives the size of its speech frames.
        dropout: Before the linear layer.
        label: Name of the batch's letter labels (``lobes.data.labels.Letters``).
        column: Column with the reference transcript.
        vocabulary: Symbols; by default the paper's 32.
        letter_prior: Start of the linear layer's bias. ``log``: the logarithm of every
            symbol's share of the training frames. ``relative``: every letter's share of
            the training text, and 10 for the blank (as the follow-up's code). None:
            random.
    """

    need = ("speech",)
    reports = (
        "wer",
        "cer",
        "insertions",
        "deletions",
        "substitutions",
        "words",
        "letters",
        "utterances",
        "blank_frames",
        "frames",
        "speech_loss",
    )

    def __init__(
        self,
        encoder: Wav2Vec2Encoder,
        dropout: float = 0.0,
        label: str = "letters",
        column: str = "wrd",
        vocabulary: Vocabulary | None = None,
        letter_prior: str | None = None,
    ):
        super().__init__()
        if letter_prior not in (None, "log", "relative"):
            raise UserError(
                f"letter_prior is {letter_prior!r}; it is log, relative or null (none)"
            )
        self.letter_prior = letter_prior
        self.label = label
        self.column = column
        self.vocabulary = vocabulary or Vocabulary()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(encoder.speech_size, len(self.vocabulary))

    def forward(self, frames: Frames) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities [batch, time, symbol] and valid frames [batch]."""
        logits = self.linear(self.dropout(frames.speech.float()))
        return functional.log_softmax(logits, dim=-1), frames.lengths

    def loss(self, output, batch: Batch) -> torch.Tensor:
        """CTC loss, divided by the letters of each utterance, then averaged.

        An utterance with more letters than frames contributes 0.
        """
        return self._losses(output, batch).mean()

    def _losses(self, output, batch):
        """The loss of each utterance [batch]."""
        log_probabilities, frames = output
        letters, counts = batch.labels[self.label]
        losses = functional.ctc_loss(
            log_probabilities.transpose(0, 1),
            letters,
            frames,
            counts,
            blank=self.vocabulary.blank_index,
            reduction="none",
            zero_infinity=True,
        )
        counts = counts.to(losses.device, non_blocking=True)
        return losses / counts.clamp(min=1)

    def prepare(self, stream: TaskStream, encoder: Wav2Vec2Encoder) -> None:
        """Set the letter prior, and warn about transcripts longer than their frames.

        CTC cannot learn these.
        """
        utterances = stream.utterances
        frames = encoder.frame_lengths(utterances.lengths)
        texts = utterances.table[self.column]
        if self.letter_prior is not None:
            bias = self._prior(texts, int(frames.sum()))
            with torch.no_grad():
                self.linear.bias.copy_(bias)
        short = [
            row
            for row, text in enumerate(texts)
            if ctc_frames(self.vocabulary.encode(text)) > frames[row]
        ]
        if short:
            logger.warning(
                "%s: %d of %d transcripts have more letters than frames (first: %s); "
                "their loss counts as 0",
                stream.csv,
                len(short),
                len(texts),
                utterances.ids[short[0]],
            )

    def _prior(self, texts, frames):
        """The bias that ``letter_prior`` asks for [symbol]."""
        counts = Counter()
        for text in texts:
            counts.update("|".join(text.split()))
        symbols = self.vocabulary.symbols
        counts = torch.tensor([float(counts[symbol]) for symbol in symbols])
        blank = self.vocabulary.blank_index
        if self.letter_prior == "relative":
            bias = counts / counts.sum()
            bias[blank] = 10.0
            return bias
        counts[blank] = frames - counts.sum()
        # A symbol that never occurs counts once, so that its logarithm is finite.
        return torch.log(counts.clamp(min=1.0) / frames)

    def update(self, output, batch: Batch) -> None:
        """Decode one batch greedily and keep hypotheses, references and losses."""
        best = output[0].argmax(-1).cpu()
        losses = self._losses(output, batch).cpu()
        references = batch.columns[self.column]
        for row, identity in enumerate(batch.ids):
            symbols = best[row, : int(output[1][row])]
            hypothesis = self.vocabulary.decode(symbols.tolist())
            blanks = int((symbols == self.vocabulary.blank_index).sum())
            loss, frames = float(losses[row]), len(symbols)
            self.collected[identity] = references[row], hypothesis, loss, blanks, frames

    def results(
        self, name: str, evaluation_set: EvaluationSet, folder: str | None = None
    ) -> Results:
        """WER and CER in percent over all words and letters, and the mean CTC loss.

        The single spaces between words are letters. ``blank_frames`` is the percentage
        of all ``frames`` whose best symbol is the blank. Into the folder go
        ``wer_<name>.txt`` (the summary and every alignment) and
        ``transcripts_<name>.csv`` (ID, reference, hypothesis).
        """
        collected = sorted(gather(self.collected).items())
        if not collected:
            raise UserError(f"{evaluation_set.csv}: no utterance was decoded")
        ids, rows = zip(*collected, strict=True)
        references, hypotheses, losses, blanks, frames = zip(*rows, strict=True)
        said, heard = ([t.split() for t in texts] for texts in (references, hypotheses))
        stats = ErrorRateStats()
        stats.append(ids, heard, said)
        summary = stats.summarize()
        if folder is not None:
            text = io.StringIO()
            stats.write_stats(text)
            write_atomically(Path(folder) / f"wer_{name}.txt", text.getvalue())
            columns = {"ID": ids, "reference": references, "hypothesis": hypotheses}
            texts = pandas.DataFrame(columns).to_csv(index=False, lineterminator="\n")
            write_atomically(Path(folder) / f"transcripts_{name}.csv", texts)
        said, heard = ([" ".join(w) for w in words] for words in (said, heard))
        letters = sum(map(len, said))
        errors = int(edit_distances(said, heard).sum())
        metrics = {
            "wer": float(summary["WER"]),
            "cer": 100 * errors / max(letters, 1),
            "insertions": summary["insertions"],
            "deletions": summary["deletions"],
            "substitutions": summary["substitutions"],
            "words": summary["num_scored_tokens"],
            "letters": letters,
            "utterances": len(rows),
            "blank_frames": 100 * sum(blanks) / max(sum(frames), 1),
            "frames": sum(frames),
            "speech_loss": float(np.mean(losses)),
        }
        return {name: metrics}


class SpeakerRecognition(Task):
    """Speaker embeddings trained with AAM-softmax (paper sections 2.1, 3.1, 4.2).

    Pooling gives the embedding. In training a dropout and a cosine classifier without
    bias follow. The score of a trial is the cosine of its two embeddings.

    Arguments:
        encoder: Gives the size of its speaker frames.
        pooling: See ``lobes.model.pooling``.
        n_speakers: Training speakers.
        dropout: Between embedding and classifier.
        scale, margin: AAM-softmax: logits are scale x cos(theta + margin) for the
            speaker, and scale x cos(theta) for all others; the margin is in radians.
        label: Name of the batch's speaker labels (``lobes.data.labels.Categories``).
    """

    reports = (
        "eer",
        "threshold",
        *(f"min_dcf_{prior}" for prior in verification.TARGET_PRIORS),
        "trials",
        "positives",
        "speaker_loss",
    )

    def __init__(
        self,
        encoder: Wav2Vec2Encoder,
        pooling: nn.Module,
        n_speakers: int,
        dropout: float = 0.0,
        scale: float = 30.0,
        margin: float = 0.2,
        label: str = "speaker",
    ):
        super().__init__()
        if "cls" in pooling.need and encoder.class_token is None:
            raise UserError(
                f"pooling: {type(pooling).__name__} takes the output at the class "
                "token, but class_token is null; set it to constant or learnt"
            )
        self.need = pooling.need
        self.pooling = pooling
        self.label = label
        self.dropout = nn.Dropout(dropout)
        size = pooling.output_size(encoder.speaker_size)
        self.weight = nn.Parameter(torch.empty(n_speakers, size))
        nn.init.xavier_normal_(self.weight)
        self.margin = AdditiveAngularMargin(margin=margin, scale=scale)
        self.speakers: Categories | None = None

    def forward(self, frames: Frames) -> torch.Tensor:
        """Embeddings [batch, channel], float32."""
        return self.pooling(frames).float()

    def loss(self, output, batch: Batch) -> torch.Tensor:
        """AAM-softmax loss, mean over the batch, float32."""
        return self._loss(output, batch.labels[self.label], self.weight)

    def _loss(self, output, speakers, weight, reduction="mean"):
        """The loss of embeddings [batch, channel] with the classes [batch]."""
        embeddings = functional.normalize(self.dropout(output), dim=1)
        cosines = embeddings @ functional.normalize(weight, dim=1).T
        targets = functional.one_hot(speakers, len(weight)).float()
        return functional.cross_entropy(
            self.margin(cosines, targets), speakers, reduction=reduction
        )

    def check_tasks(self, tasks: dict[str, nn.Module]) -> None:
        """Raise ``UserError`` when the pooling asks a speech head that never trains."""
        asked = getattr(self.pooling, "speech", None)
        if asked is not None and all(task is not asked for task in tasks.values()):
            raise UserError(
                f"pooling: {type(self.pooling).__name__} asks the speech head, which "
                f"is not among the tasks ({', '.join(tasks)}); add it to tasks, or "
                "take another pooling"
            )

    def prepare(self, stream: TaskStream, encoder: Wav2Vec2Encoder) -> None:
        """Raise ``UserError`` unless there are as many speakers as classes."""
        self.speakers = stream.labels[self.label]
        count = len(self.speakers)
        if count != len(self.weight):
            verb = "has" if len(stream.csvs) == 1 else "have"
            raise UserError(
                f"n_speakers is {len(self.weight)} but {stream.csv} {verb} {count} "
                f"speakers; set --speaker.n_speakers={count}"
            )

    def update(self, output, batch: Batch) -> None:
        """Keep the embeddings of one batch."""
        embeddings = output.float().cpu().numpy()
        self.collected.update(zip(batch.ids, embeddings, strict=True))

    def results(
        self, name: str, evaluation_set: EvaluationSet, folder: str | None = None
    ) -> Results:
        """EER, minDCF and threshold of every trial list of the evaluation set.

        A validation (``name`` is ``valid``) on speakers of the training also gives the
        ``speaker_loss``. ``scores_<list>.txt`` go into the folder. Raises ``UserError``
        for an embedding that is not finite: broken scores give no metric.
        """
        embeddings = gather(self.collected)
        results = {}
        for trials_name, trials in evaluation_set.trials.items():
            scores = verification.cosine_scores(trials, embeddings)
            metrics = verification.verification_metrics(scores, trials.labels)
            results[trials_name] = metrics
            if folder is not None:
                write_scores(Path(folder) / f"scores_{trials_name}.txt", trials, scores)
        if name == "valid" and results:
            loss = self._valid_loss(embeddings, evaluation_set)
            results[trials_name].update(loss)
        return results

    def _valid_loss(self, embeddings, evaluation_set):
        """``{"speaker_loss": mean}``, or nothing where a speaker is no class."""
        table = evaluation_set.utterances.table
        if self.speakers is None or self.speakers.column not in table:
            return {}
        known = dict(zip(table["ID"], table[self.speakers.column], strict=True))
        names = [known[identity] for identity in embeddings]
        if not set(names) <= self.speakers.index.keys():
            return {}
        weight = self.weight.detach().float().cpu()
        vectors = torch.from_numpy(np.stack(list(embeddings.values()))).split(_CHUNK)
        speakers = self.speakers.encode(names).split(_CHUNK)
        parts = zip(vectors, speakers, strict=True)
        losses = [self._loss(*part, weight, "none") for part in parts]
        return {"speaker_loss": float(torch.cat(losses).double().mean())}
