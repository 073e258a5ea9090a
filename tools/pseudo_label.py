"""Transcribe the utterances of CSVs with a HuggingFace speech recogniser.

    python tools/pseudo_label.py CSV... --model MODEL --output transcripts.jsonl

MODEL is a hub name (openai/whisper-base, facebook/wav2vec2-base-960h) or a local
folder. The output has one JSON object a line, ``{"ID", "text", "language",
"seconds"}``, after a first line with the model; text is null where the utterance is
too long to be used (lobes/preparation/transcripts.py), language where the model tells
none. The same command goes on where a killed one stopped. docs/transcripts.md tells
the rest.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Literal

from lobes.data.audio import SAMPLE_RATE
from lobes.errors import INTERRUPTED, UserError, user_errors_exit
from lobes.model.source_check import cache_alone_if_offline, check_source
from lobes.preparation.transcripts import MAXIMUM_SECONDS, json_lines
from lobes.settings.signatures import Command
from lobes.settings.table import option
from lobes.system.lazy import lazy
from lobes.system.locks import lock_file
from lobes.system.parallel import worker_count
from lobes.system.terminal import progress_bar, say

data = lazy("torch.utils.data")
utterance_reader = lazy("lobes.data.utterances")
torch = lazy("torch")
transformers = lazy("transformers")

# Seconds between two flushes to the disk: what a power failure may cost.
_SYNC_INTERVAL = 30


def pseudo_label(
    csvs: Sequence[str],
    model: str,
    output: Path,
    batch_samples: int = 3_200_000,
    device: str | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    language: str | None = None,
    num_workers: int | None = None,
) -> str:
    """Transcribe the utterances of CSVs with a HuggingFace speech recogniser.

    Arguments:
        csvs: Prepared CSVs, with columns ID, wav, start, stop.
        model: A name of the hub, or a local folder.
        output: File of JSON lines; what is missing is appended.
        batch_samples: Samples in a batch; Whisper makes 480,000 of every utterance.
        device: Such as cpu, cuda or cuda:1; by default cuda if there is one.
        dtype: Of the weights and of the computation.
        language: Tells Whisper the language (en), which else is detected.
        num_workers: Reading processes, by default one for each core, and 8 at most.

    Returns:
        What was done.
    """
    if batch_samples < 1:
        raise UserError(
            f"--batch_samples={batch_samples}: a batch holds 1 sample or more; leave "
            "it out for the default"
        )
    workers = worker_count(num_workers)
    workers = min(workers, 8) if num_workers is None else workers
    utterances = Waveforms(csvs)
    name = os.path.abspath(model) if os.path.isdir(model) else model
    # What decides the transcripts is the first line of the output.
    heading = {"model": name, "dtype": dtype, "language": language}
    with Output(output, heading, utterances) as transcripts:
        if len(transcripts.done) < len(utterances):
            try:
                recogniser = Recogniser(model, device, dtype, language)
                _transcribe(utterances, recogniser, transcripts, batch_samples, workers)
            except KeyboardInterrupt:
                say(f"stopped; {transcripts.summary()}; the same command goes on")
                sys.exit(INTERRUPTED)
        return transcripts.summary()


COMMAND = Command(
    pseudo_label,
    positional=["csvs"],
    names={"csvs": "CSV"},
    kinds={
        "batch_samples": option("max_batch_samples"),
        "num_workers": option("num_workers"),
    },
)


@user_errors_exit
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    print(pseudo_label(**COMMAND.parse(argv)))


class Waveforms:
    """The utterances of CSVs; an item is a list of rows, as waveforms as they are."""

    def __init__(self, csvs: Sequence[str]):
        self._utterances = utterance_reader.Utterances(csvs, labels={})
        self.ids, self.lengths = self._utterances.ids, self._utterances.lengths

    def __len__(self):
        return len(self._utterances)

    def __getitem__(self, rows):
        read = self._utterances.samples
        try:
            return [read(row, 0, self.lengths[row]) for row in rows]
        except UserError as error:
            # Raised in a worker, it would reach the user as a page of traceback.
            return error

    def batches(
        self, padded_length: Callable[[int], int], budget: int
    ) -> tuple[list[int], list[list[int]]]:
        """Rows too long to transcribe; rows of every batch.

        Longest first: what does not fit into memory, fails at once. The utterances
        of a batch have one length (as ``padded_length`` gives it): no transcript
        depends on its neighbours, as it would with padding, which changes wav2vec2's
        group norm and which the pipeline decodes like speech. VoxCeleb's m4a files
        have multiples of 1024 samples, so that batches are full anyway.
        """
        lengths = self.lengths.tolist()
        rows = sorted(range(len(self)), key=lambda row: -lengths[row])
        limit = MAXIMUM_SECONDS * SAMPLE_RATE
        long = [row for row in rows if lengths[row] >= limit]
        batches = []
        for length, group in groupby(
            rows[len(long) :], lambda row: padded_length(lengths[row])
        ):
            group = list(group)
            size = max(budget // length, 1)
            batches += [group[i : i + size] for i in range(0, len(group), size)]
        return long, batches


class Recogniser:
    """HuggingFace's pipeline for speech recognition; see ``pseudo_label``."""

    def __init__(
        self, source: str, device: str | None, dtype: str, language: str | None
    ):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if os.path.isdir(source):
            check_source(source)
        else:
            cache_alone_if_offline(source)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.pipeline = transformers.pipeline(
                "automatic-speech-recognition",
                model=source,
                device=device,
                dtype=getattr(torch, dtype),
            )
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(
                f"--model={source}, --device={device}: no speech recogniser can "
                f"be loaded ({reason}); name a model of the hub, or a folder that "
                "save_pretrained wrote for model and processor"
            ) from error
        model = self.pipeline.model
        # transformers makes up the weights of a head that a model does not have.
        architectures = model.config.architectures or []
        if type(model).__name__ not in architectures:
            raise UserError(
                f"--model={source} holds {', '.join(architectures)}, not "
                f"{type(model).__name__}: it was not trained to transcribe"
            )
        self.whisper = self.pipeline.type == "seq2seq_whisper"
        self.language = language
        settings = model.generation_config if self.whisper else None
        tokens = getattr(settings, "lang_to_id", {})
        codes = {index: token.strip("<|>") for token, index in tokens.items()}
        self.settings = {"task": "transcribe"} if codes else {}
        if language:
            if language not in codes.values():
                known = ", ".join(sorted(codes.values())) or "no language"
                raise UserError(
                    f"--language={language}: {source} can be told {known}; correct or "
                    "omit it"
                )
            self.settings["language"] = language
        elif codes:
            self._remember_languages(model, codes)

    def padded_length(self, samples: int) -> int:
        """Samples that an utterance costs: Whisper makes 30 s of all."""
        return self.pipeline.feature_extractor.n_samples if self.whisper else samples

    def transcribe(self, waves: list) -> list[tuple[str, str | None]]:
        """``(text, language or None)`` of each waveform of a batch."""
        inputs = [{"raw": wave, "sampling_rate": SAMPLE_RATE} for wave in waves]
        self._detected = [self.language] * len(waves)
        outputs = self.pipeline(
            inputs, batch_size=len(inputs), generate_kwargs=self.settings
        )
        texts = [output["text"].strip() for output in outputs]
        return list(zip(texts, self._detected, strict=True))

    def _remember_languages(self, model, codes):
        """Keep what Whisper detects while it transcribes; ``codes`` by token.

        The pipeline's ``return_language`` fails for batches (transformers 5.23).
        """
        detect = model.detect_language

        def detect_and_remember(*args, **kwargs):
            languages = detect(*args, **kwargs)
            self._detected = [codes[index] for index in languages.tolist()]
            return languages

        model.detect_language = detect_and_remember


class Output:
    """The file of transcripts, opened for the lines that are missing.

    Arguments:
        heading: First line of the file; another one is refused.
        utterances: Whose IDs alone may stand in the file.
    """

    def __init__(self, path: str | Path, heading: dict, utterances: Waveforms):
        self.path = Path(path)
        self.heading = heading
        self.total = len(utterances)
        self._opened = self._synced = time.monotonic()
        self._seconds = 0.0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.path, "a+b")
        except OSError as error:
            raise UserError(
                f"--output={path} cannot be written ({error.strerror}); name another"
            ) from error
        if not lock_file(self._stream):
            raise UserError(
                f"--output={path}: another process writes it; wait for that one, or "
                "name another file"
            )
        self.done = self._resume(set(utterances.ids))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.fsync(self._stream.fileno())
        self._stream.close()

    def add(self, lines: Iterable[tuple]) -> None:
        """Append ``(ID, text, language, samples)``, except what stands there."""
        # Not before there are transcripts: a misspelt model must not stand there.
        text = "" if self._stream.tell() else json.dumps(self.heading) + "\n"
        for identity, words, language, samples in lines:
            self._seconds += samples / SAMPLE_RATE
            if identity not in self.done:
                self.done.add(identity)
                line = {"ID": identity, "text": words, "language": language}
                line["seconds"] = round(samples / SAMPLE_RATE, 3)
                text += json.dumps(line, ensure_ascii=False) + "\n"
        self._stream.write(text.encode("utf-8"))
        self._stream.flush()
        if time.monotonic() - self._synced > _SYNC_INTERVAL:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def summary(self) -> str:
        """What was done, as text."""
        hours, elapsed = self._seconds / 3600, time.monotonic() - self._opened
        now = f"; now {hours:.2f} hours of speech in {elapsed:.0f} seconds"
        return (
            f"{self.path}: {len(self.done):,} of {self.total:,} utterances"
            f"{now if self._seconds else ', nothing was left to do'}"
        )

    def _resume(self, known):
        """IDs of the complete lines; an unfinished one is cut off."""
        self._stream.seek(0)
        content = self._stream.read()
        complete = content.rfind(b"\n") + 1
        begun = (json.dumps(self.heading) + "\n").encode()
        if not complete and not begun.startswith(content):
            raise UserError(
                f"{self.path}: this tool did not begin that file; name another --output"
            )
        done = set()
        lines = json_lines(self.path, content[:complete].splitlines())
        for _, heading in islice(lines, 1):
            _check_heading(self.path, heading, self.heading)
        for number, value in lines:
            if value.get("ID") not in known:
                raise UserError(
                    f"{self.path}, line {number}: {value.get('ID')!r} is in none of "
                    "the CSVs; name all that the file was begun with, or another "
                    "--output"
                )
            done.add(value["ID"])
        # Not before it is known to be a file of ours.
        if complete < len(content):
            say(
                f"{self.path}: cut off an unfinished last line "
                f"({len(content) - complete} bytes), which a killed run left"
            )
            self._stream.truncate(complete)
            self._stream.seek(complete)
        if 0 < len(done) < len(known):
            say(f"{self.path}: {len(done):,} utterances are there; going on")
        return done


def _transcribe(utterances, recogniser, output, batch_samples, workers):
    """Transcribe and write what is missing, batch by batch."""
    ids, lengths = utterances.ids, utterances.lengths.tolist()
    long, plan = utterances.batches(recogniser.padded_length, batch_samples)
    output.add((ids[row], None, None, lengths[row]) for row in long)
    # A batch that was written in part is done again as a whole: among the same
    # neighbours, rounding is the same.
    plan = [rows for rows in plan if any(ids[row] not in output.done for row in rows)]
    loader = data.DataLoader(
        utterances,
        sampler=plan,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=min(workers, len(plan)),
    )
    with progress_bar(
        "transcribing", len(utterances), initial=len(output.done)
    ) as progress:
        for rows, waves in zip(plan, loader, strict=True):
            if isinstance(waves, UserError):
                raise waves
            try:
                spoken = recogniser.transcribe(waves)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"--batch_samples={batch_samples}: the device has too "
                    f"little memory for {len(rows)} utterances of {lengths[rows[0]]} "
                    "samples; give fewer, or --dtype=bfloat16"
                ) from error
            output.add(
                (ids[row], text, language, lengths[row])
                for row, (text, language) in zip(rows, spoken, strict=True)
            )
            progress.update(len(output.done) - progress.n)


def _check_heading(path, heading, wanted):
    """Refuse to mix the transcripts of two models in one file."""
    if "model" not in heading:
        raise UserError(
            f"{path}, line 1: this tool did not begin that file; name another --output"
        )
    for key, value in wanted.items():
        if heading.get(key) != value:
            raise UserError(
                f"{path} was begun with --{key}={heading.get(key)}, not {value}; give "
                "the same, or name another --output"
            )


def _unchanged(batch):
    """Collate function: an item is a batch already."""
    return batch


if __name__ == "__main__":
    main()
