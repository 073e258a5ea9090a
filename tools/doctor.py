"""Say what is missing before a training is started.

    python tools/doctor.py [hparams/x.yaml [--key=value ...]]

A line each: OK, WARN (it runs, but perhaps not as you want) or FAIL (it will not),
what was found, and what to do about it. With a YAML and train.py's overrides also the
corpora, their CSVs against the official sizes, and an estimate of the memory and time
that a step takes. The exit status is 1 after any FAIL.
"""

import contextlib
import importlib
import importlib.metadata
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

INSTALL = "pip install -c constraints.txt -e ."

try:
    import numpy as np
    import soundfile
    from packaging.requirements import Requirement
    from packaging.version import Version

    from lobes.data.audio import encode_audio, import_pyav
    from lobes.data.leaks import check_leaks
    from lobes.data.trials import read_trials
    from lobes.data.utterance_tables import read_columns
    from lobes.errors import ArgumentParser, UserError, user_errors_exit
    from lobes.model.source_check import check_source
    from lobes.preparation.folders import listing
    from lobes.preparation.published import TRIALS, official_count
    from lobes.runs import cost
    from lobes.system.checkout import ROOT
    from lobes.system.lazy import lazy
    from lobes.system.machine import memory, usable_cores
except ImportError as error:
    # Nothing else can be found out then.
    raise SystemExit(f"FAIL  packages      {error}; {INSTALL}") from error

encoder = lazy("lobes.model.encoder")
evaluation_sets = lazy("lobes.data.evaluation_sets")
labels = lazy("lobes.data.labels")
tasks = lazy("lobes.model.tasks")
torch = lazy("torch")

#: What pyproject.toml calls this project.
DISTRIBUTION = "speech-speaker-mtl"

#: Packages that get a line of their own; torchaudio has one with torch.
_MAIN = ("speechbrain", "transformers")

# Where VoxCeleb's folders of speakers may lie: recipes/VoxCeleb/voxceleb_prepare.py.
_ROOTS = ("dev/wav", "dev/aac", "wav", "aac", "test/wav", ".")

#: Share of what large matrix products reach that a whole training step reaches. In low
#: precision as in lobes/runs/cost.py: an H200 does 790 TFLOP/s of products, and 172 in
#: training; in float32, where products take most of the time, as measured on a CPU.
EFFICIENCY = {"bf16": 172 / 790, "fp16": 172 / 790, "fp32": 0.8}


class Finding(NamedTuple):
    """A line: ``status`` OK, WARN or FAIL, what was found about it, what to do."""

    status: str
    topic: str
    found: str
    remedy: str = ""

    def __str__(self):
        end = f"; {self.remedy}" if self.remedy else ""
        return f"{self.status:<4}  {self.topic:<12}  {self.found}{end}"


def judged(
    good: bool, topic: str, found: str, remedy: str, otherwise: str = "FAIL"
) -> Finding:
    """A ``Finding`` that is OK where it is ``good``; a remedy is for what is not."""
    return (
        Finding("OK", topic, found)
        if good
        else Finding(otherwise, topic, found, remedy)
    )


@user_errors_exit
def main(argv: Sequence[str] | None = None):
    """The command; see the module's docstring."""
    parser = ArgumentParser(
        description="Say what is missing before a training is started.",
        epilog="Further options are train.py's overrides, as --key=value.",
    )
    parser.add_argument("yaml", nargs="?", help="a recipe's YAML file")
    options, overrides = parser.parse_known_args(argv)
    if overrides and options.yaml is None:
        raise UserError(f"{overrides[0]}: name the YAML file that it belongs to")
    if options.yaml is not None:
        cost.check(options.yaml, overrides)
    try:
        importlib.import_module("lobes.model.encoder")  # with torch and transformers
    except ImportError as error:
        raise SystemExit(f"FAIL  packages      {error}; {INSTALL}") from error
    statuses = []
    for finding in findings(options.yaml, overrides):
        print(finding, flush=True)
        statuses.append(finding.status)
    print(", ".join(f"{statuses.count(s)} {s}" for s in ("OK", "WARN", "FAIL")))
    sys.exit(int("FAIL" in statuses))


def findings(
    yaml: str | None = None, overrides: Sequence[str] = ()
) -> Iterator[Finding]:
    """Yield every ``Finding``, the quick ones first."""
    yield python()
    yield from packages()
    yield from devices()
    yield from audio()
    yield tensorboard()
    if yaml is None:
        yield from shared_memory()
        yield disk(ROOT / "results")
        return
    try:
        yield from source(cost.source_of(yaml, overrides))
        hparams = cost.load(yaml, overrides)
        estimate = cost.estimate(yaml, overrides)
    except UserError as error:
        yield Finding("FAIL", "settings", str(error))
        return
    given = [text for text in overrides if text.startswith("--output_folder=")]
    output_folder = given[-1].partition("=")[2] if given else ROOT / "results"
    yield from shared_memory(loading(hparams))
    yield from corpora(hparams)
    yield from opened(hparams)
    yield from training(hparams, estimate, output_folder)


# Programs -----------------------------------------------------------------------


def python() -> Finding:
    """The interpreter; the Makefile takes the same versions."""
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding("OK", "python", f"{version}, {sys.executable}")
    found = f"{version}, but 3.11, 3.12 or 3.13 is needed"
    remedy = "make .venv anew: rm -r .venv, then make PYTHON=python3.12 test"
    return Finding("FAIL", "python", found, remedy)


def packages() -> Iterator[Finding]:
    """What is installed, against pyproject.toml's bounds and constraints.txt."""
    tested = tested_versions()
    needed = [Requirement(text) for text in importlib.metadata.requires(DISTRIBUTION)]
    others = []
    for one in needed:
        if one.marker is not None:
            # Of an extra: where it matters it has a line of its own.
            continue
        found = version(one.name)
        known = found and Version(found).public  # without the build: 2.11.0+cu130
        wanted = tested.get(one.name, known)
        if found is None:
            yield Finding("FAIL", one.name, "not installed", INSTALL)
        elif not one.specifier.contains(found, prereleases=True):
            found = f"{found}, but {one.specifier} is needed"
            yield Finding("FAIL", one.name, found, INSTALL)
        elif one.name == "torch":
            yield torch_and_torchaudio(tested)
        elif known != wanted:
            remedy = f"if anything is odd: pip install {one.name}=={wanted}"
            yield Finding("WARN", one.name, f"{found}, tested with {wanted}", remedy)
        elif one.name in _MAIN:
            yield Finding("OK", one.name, f"{found}, as tested")
        elif one.name != "torchaudio":
            others.append(one.name)
    yield Finding("OK", "packages", f"as tested: {', '.join(others)}")


def torch_and_torchaudio(tested: dict[str, str]) -> Finding:
    """They must be of one version and of one build."""
    remedy = (
        f"install both from one place: uv pip install --torch-backend=auto "
        f"torch=={tested['torch']} torchaudio=={tested['torchaudio']}"
    )
    try:
        found = importlib.import_module("torchaudio").__version__
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        found = f"torch {torch.__version__}: torchaudio cannot be used ({reason})"
        return Finding("FAIL", "torch", found, remedy)
    both = f"torch {torch.__version__}, torchaudio {found}"
    ours, theirs = Version(str(torch.__version__)), Version(found)
    if ours.release[:2] != theirs.release[:2] or ours.local != theirs.local:
        return Finding("FAIL", "torch", f"{both} do not match", remedy)
    if ours.public != tested["torch"]:
        found = f"{both}, tested with {tested['torch']}"
        return Finding("WARN", "torch", found, f"if anything is odd: {remedy}")
    return Finding("OK", "torch", f"{both}, as tested")


def tested_versions() -> dict[str, str]:
    """Package name to version, of constraints.txt."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE))


def version(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# Machine ------------------------------------------------------------------------


def devices() -> Iterator[Finding]:
    """GPUs with their memory and precision, or why there is none; the cores."""
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found = f"cuda:{index} {name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if free < 0.9 * total:
            yield Finding("WARN", "device", found, "another process uses it, too")
            continue
        precision = "bf16" if bf16 else "fp16"
        found += ", bf16" if bf16 else ", no bf16"
        yield Finding("OK", "device", found, f"use --precision={precision}")
    if not torch.cuda.device_count():
        yield no_device()
    cores = usable_cores()
    found = f"{cores} to be used by this process, {memory() / 1e9:.0f} GB of memory"
    remedy = "read with --num_workers=1; a GPU may have to wait"
    yield judged(cores >= 4, "cores", found, remedy, "WARN")


def no_device() -> Finding:
    """Why torch sees no GPU."""
    found = "CPU only"
    remedy = (
        "the demo and the tests run; for corpora of full size use a machine with a GPU"
    )
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        found = f"torch {torch.__version__} was built for CPUs, but there is nvidia-smi"
        remedy = "uv pip install --reinstall --torch-backend=auto torch torchaudio"
    elif shutil.which("nvidia-smi"):
        query = ["--query-gpu=name,driver_version", "--format=csv,noheader"]
        driver = subprocess.run(
            ["nvidia-smi", *query], capture_output=True, text=True, check=False
        )
        said = " ".join((driver.stdout or driver.stderr).split())
        found = f"no GPU for torch's CUDA {torch.version.cuda}; nvidia-smi says: {said}"
        remedy = "update the driver, or unset CUDA_VISIBLE_DEVICES"
    return Finding("WARN", "device", found, remedy)


def audio() -> Iterator[Finding]:
    """Whether wav and flac can be written and read, and m4a read."""
    name = f"soundfile {soundfile.__version__}, {soundfile.__libsndfile_version__}"
    samples = np.sin(np.arange(1600) / 10).astype(np.float32)
    try:
        for kind in ("wav", "flac"):
            soundfile.read(io.BytesIO(encode_audio(samples, kind)))
        yield Finding("OK", "wav, flac", name)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        found = f"{name}: no {kind} ({' '.join(str(error).split())})"
        remedy = "--force-reinstall soundfile, whose wheels contain libsndfile"
        yield Finding("FAIL", "wav, flac", found, f"pip install {remedy}")
    try:
        av = import_pyav("VoxCeleb2.m4a")
        yield Finding("OK", "m4a", f"PyAV {av.__version__}")
    except UserError:
        found = "PyAV is not installed: VoxCeleb2 cannot be read as published"
        yield Finding("WARN", "m4a", found, "pip install -e .[m4a]")


def tensorboard() -> Finding:
    """An extra that no recipe needs."""
    found = version("tensorboard")
    if found is None:
        remedy = "for --tensorboard=True: pip install -e .[tensorboard]"
        return Finding("OK", "tensorboard", "not installed", remedy)
    return Finding("OK", "tensorboard", f"{found}", "used with --tensorboard=True")


def shared_memory(needed: float = 2e8, folder: str = "/dev/shm") -> Iterator[Finding]:
    """Whether loading processes have room to hand batches over, on Linux."""
    if not os.path.isdir(folder):
        return
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e6:,.0f} MB free, loading processes need {needed / 1e6:.0f}"
    remedy = "read with --num_workers=0, or start the container with --shm-size=1g"
    yield judged(free >= needed, folder, found, remedy)


def source(name: str | None) -> Iterator[Finding]:
    """Whether the weights that a training starts from are whole."""
    if name is None:
        return
    try:
        found = check_source(name, encoder.Wav2Vec2Encoder.model_class)
    except UserError as error:
        yield Finding("FAIL", "source", str(error).removeprefix("source: "))
        return
    there = os.path.isdir(found)
    text = f"{name}: whole, in {found}" if there else f"{name}: the hub has it"
    yield Finding("OK", "source", text)


def loading(hparams: dict) -> int:
    """Bytes of the batches that loading processes hold ready for a training."""
    streams = {id(stream) for stream in hparams["train_streams"].values()}
    # Of float32 samples; torch lets each process read two batches ahead.
    held = len(streams) * hparams["num_workers"] * 2
    return held * hparams["max_batch_samples"] * 4


def disk(folder: str | Path, needed: float = 5e9) -> Finding:
    """Whether ``needed`` bytes have room in a folder that need not exist yet."""
    folder = Path(os.path.abspath(folder))
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        found = f"{folder}: it cannot be written to"
        return Finding("FAIL", "disk", found, "give another --output_folder")
    found = f"{folder}: {free / 1e9:.1f} GB free, a run needs {needed / 1e9:.1f}"
    remedy = "make room, or give another --output_folder"
    return judged(free >= needed, "disk", found, remedy)


# Corpora ------------------------------------------------------------------------


def corpora(hparams: dict) -> Iterator[Finding]:
    """CSVs, or folders where these are not prepared, and trial lists."""
    for name, findings_of in (("librispeech", librispeech), ("voxceleb", voxceleb)):
        if hparams.get(name) is not None:
            yield from findings_of(hparams[name])
    streams = hparams["train_streams"].values()
    for label in {id(one): one for s in streams for one in s.labels.values()}.values():
        for task in hparams["tasks"].values():
            speakers = isinstance(task, tasks.SpeakerRecognition)
            if speakers and isinstance(label, labels.Categories):
                yield from classes(label.csvs, len(task.weight))


def librispeech(settings: dict) -> Iterator[Finding]:
    """Of the training splits together, and of each other split."""
    groups = {f"{s}.csv": [s] for s in settings["dev_splits"] + settings["te_splits"]}
    if settings["tr_splits"]:
        groups = {"train.csv": settings["tr_splits"], **groups}
    for name, splits in groups.items():
        official = official_count(*(f"LibriSpeech/{split}" for split in splits))
        csv_path = Path(settings["save_folder"]) / name
        topic = f"LibriSpeech/{csv_path.stem}"
        if csv_path.is_file():
            yield prepared(topic, [csv_path], official)
        else:
            root = settings["data_folder"]
            places = [(split, f"LibriSpeech/{split}") for split in splits]
            yield listed(topic, settings, root, "librispeech_folder", places, official)


def voxceleb(settings: dict) -> Iterator[Finding]:
    """Of VoxCeleb2, of VoxCeleb1, and of every trial list."""
    save_folder = Path(settings["save_folder"])
    two, one = settings["data_folder"], settings["test_folder"]
    train, valid, test = (save_folder / f"{n}.csv" for n in ("train", "valid", "test"))
    # Then the training speakers are VoxCeleb1's, which are counted below.
    same = settings.get("without_test_speakers")
    official = official_count("VoxCeleb1/dev" if same else "VoxCeleb2/dev")
    if train.is_file():
        csvs = [path for path in (train, valid) if path.is_file()]
        yield prepared("VoxCeleb1's dev" if same else "VoxCeleb2", csvs, official)
    elif two is not None and not same:
        yield listed("VoxCeleb2", settings, two, "voxceleb2_folder", [_ROOTS], official)
    if test.is_file():
        # As many as the lists name, of which no number is published.
        yield prepared("VoxCeleb1", [test], None)
    elif one is not None:
        official = official_count("VoxCeleb1/dev", "VoxCeleb1/test")
        yield listed("VoxCeleb1", settings, one, "voxceleb1_folder", [_ROOTS], official)
    for name in settings["trial_lists"]:
        place = save_folder / Path(name).name
        given = one not in (None, "unused")
        if given and not (settings["skip_prep"] or place.is_file()):
            # train.py takes it from there.
            place = Path(one) / name
        if given or test.is_file():
            yield trials(place)


def prepared(topic, csvs, official):
    """What CSVs hold, against the published size."""
    try:
        speakers, found = count(csvs)
    except UserError as error:
        return Finding("FAIL", topic, str(error), "prepare it again")
    good = True
    if speakers is None:
        text = f"{found:,} utterances without speakers (no column spk_id)"
    elif official is None:
        text = f"{found:,} utterances, {len(speakers):,} speakers"
    else:
        text = (
            f"{found:,} of {official.utterances:,} utterances, "
            f"{len(speakers):,} of {official.speakers:,} speakers"
        )
        good = (len(speakers), found) == official
    remedy = (
        "if that is not the part that you want: complete the download, see the "
        "*.skipped.csv beside it, and prepare it again"
    )
    text += f" in {' and '.join(map(str, csvs))}"
    return judged(good, topic, text, remedy, "WARN")


def listed(topic, settings, root, option, places, official):
    """Speakers that lie in a corpus not prepared yet.

    Each item of ``places`` lists where its folders of speakers may be; ``option`` is
    the setting that names the corpus's ``root``.
    """
    missing = f"no CSV in {settings['save_folder']}"
    if settings["skip_prep"]:
        remedy = "put it there, or train without --skip_prep"
        return Finding("FAIL", topic, missing, remedy)
    if root == "unused":
        return Finding("FAIL", topic, missing, f"give --{option}=...")
    found = 0
    for some in places:
        there = [Path(root) / place for place in some if (Path(root) / place).is_dir()]
        if not there:
            at = Path(root) / some[0]
            remedy = f"unpack it there, or correct --{option}"
            return Finding("FAIL", topic, f"{at} is no folder", remedy)
        names = (e.name for path in there for e in listing(path)[0])
        found += len({n for n in names if n.startswith("id") or n.isdecimal()})
    wanted = "" if official is None else f" of {official.speakers:,}"
    text = f"{found:,}{wanted} speakers in {root}, not prepared yet"
    if not found:
        return Finding("FAIL", topic, text, "unpack the corpus there")
    if official is not None and found != official.speakers:
        return Finding("WARN", topic, text, "if you want all: complete the download")
    return Finding("OK", topic, text, "train.py decodes and checks every file first")


def trials(path):
    """A trial list against the published one of its name."""
    if not path.is_file():
        return Finding("FAIL", path.name, f"{path} does not exist", "download it there")
    try:
        same = read_trials(path, allow_repeats=True).labels
    except UserError as error:
        return Finding("FAIL", path.name, str(error), "download it again")
    found = int(same.sum()), int((~same).sum())
    official = TRIALS.get(path.name)
    if official is None:
        return Finding("OK", path.name, f"{found[0]:,} + {found[1]:,} trials in {path}")
    text = (
        f"{found[0]:,} of {official.positives:,} positive and {found[1]:,} of "
        f"{official.negatives:,} negative trials in {path}"
    )
    remedy = (
        "an error rate on it is not one on the published list: download it again, and "
        "complete VoxCeleb1"
    )
    return judged(found == official, path.name, text, remedy, "WARN")


def opened(hparams: dict) -> Iterator[Finding]:
    """What opening all sets says, of those whose CSVs are there, as train.py does."""
    train = hparams["train_streams"].items()
    train = {t: s for t, s in train if all(map(os.path.isfile, s.csvs))}
    valid, *groups = (
        {name: one for name, one in sets.items() if os.path.isfile(one.csv)}
        for sets in (hparams["valid_sets"], *hparams["test_sets"].values())
    )
    test = dict(zip(hparams["test_sets"], groups, strict=True))
    evaluated = [*valid.values(), *(s for sets in test.values() for s in sets.values())]
    if not train and not evaluated:
        return
    remedy = "all of it is told again, and the rest, when train.py opens its sets"
    with _warnings() as said:
        try:
            evaluation_sets.open_sets(train, valid, test)
            check_leaks(train, valid, test, hparams["allow_leaks"])
        except UserError as error:
            yield Finding("FAIL", "files", str(error), remedy)
            return
    for text in said:
        yield Finding("WARN", "files", text)
    count = sum(len(s.utterances) for s in {id(s): s for s in train.values()}.values())
    count += sum(len(one.rows) for one in evaluated)
    text = f"the files of {count:,} utterances are there, 16 kHz and as long as listed"
    yield Finding("OK", "files", text)


@contextlib.contextmanager
def _warnings():
    """A list of what this project warns of meanwhile, which is then not printed."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("lobes")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def classes(csvs: Sequence[str], n_speakers: int) -> Iterator[Finding]:
    """The classifier's size against its speakers, where the CSVs are there."""
    try:
        speakers, _ = count(csvs)
    except UserError:
        # They are not there yet, or opening the sets says what is wrong.
        return
    if speakers is None:
        return
    found = len(speakers)
    text = f"{n_speakers:,}, but {' and '.join(map(str, csvs))} have {found:,}"
    if found == n_speakers:
        text = f"{found:,}, as in the training CSVs"
    remedy = f"--speaker.n_speakers={found}"
    yield judged(found == n_speakers, "n_speakers", text, remedy)


def count(csvs):
    """The speakers (set) and the number of utterances of several CSVs.

    The speakers are None where a CSV names none: speech recognition needs none.
    """
    tables = [read_columns(path, ["spk_id"]) for path in csvs]
    utterances = sum(map(len, tables))
    if not all("spk_id" in table for table in tables):
        return None, utterances
    return set().union(*(table["spk_id"] for table in tables)), utterances


# Training -----------------------------------------------------------------------


def training(hparams, estimate, output_folder):
    """Estimates of memory, time and disk."""
    samples = f"{hparams['max_batch_samples']:,} samples of each task"
    factor = hparams["grad_accumulation_factor"]
    needed = estimate["needed"]
    text = f"about {needed[factor] / 1e9:.1f} GB on a GPU for {samples} at once"
    if not torch.cuda.device_count():
        yield Finding("OK", "memory", text)
    for index in range(torch.cuda.device_count()):
        total = torch.cuda.mem_get_info(index)[1]
        fits = [n for n, size in needed.items() if size <= total and n > factor]
        there = f"{text}, cuda:{index} has {total / 1e9:.1f}"
        remedy = "use a larger GPU, or --encoder.gradient_checkpointing=True"
        if fits:
            batch = hparams["max_batch_samples"] * factor // fits[0]
            remedy = f"--max_batch_samples={batch} --grad_accumulation_factor={fits[0]}"
        yield judged(needed[factor] <= total, "memory", there, remedy)
    device = "cuda" if torch.cuda.device_count() else "cpu"
    # CPUs multiply in low precision, too, but many do it element by element.
    precision = hparams["precision"] if device == "cuda" else "fp32"
    rate = products(device, precision) * EFFICIENCY[precision]
    seconds = estimate["flops"] / rate
    hours = estimate["run_flops"] / rate / 3600
    text = (
        f"about {seconds:,.2f} s a step, {hours:,.1f} h in all on this machine "
        f"({hparams['steps']:,} steps of {estimate['flops'] / 1e12:.3g} TFLOP)"
    )
    if device == "cpu":
        for name, tflops in cost.MACHINES.items():
            text += f", {estimate['run_flops'] / 3.6e15 / tflops:,.1f} h on an {name}"
    remedy = "use a GPU, a recent one with --precision=bf16"
    yield judged(hours <= 24 * 14, "time", text, remedy, "WARN")
    # Best, last, and the one being written.
    yield disk(output_folder, 3 * estimate["checkpoint"] + estimate["results"])


def products(device, precision, seconds=0.5):
    """Operations per second of large matrix products in a precision."""
    low = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = low.get(precision, torch.float32)
    size = 8192 if device == "cuda" else 1024
    one = torch.rand(size, size, device=device, dtype=dtype)
    done, began = -1, time.perf_counter()
    while done < 1 or time.perf_counter() - began < seconds:
        float((one @ one)[0, 0])
        done += 1
        if not done:
            # The first one loads libraries.
            began = time.perf_counter()
    return 2 * size**3 * done / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
