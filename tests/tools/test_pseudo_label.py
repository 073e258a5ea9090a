"""Transcribing with real, if tiny, models: batches, resuming, languages, refusals."""

import json
import multiprocessing
import signal
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest
import soundfile
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lobes.data.vocabulary import VOCABULARY
from lobes.preparation.transcripts import read_transcripts
from tests.helpers import tiny
from tools import pseudo_label
from tools.pseudo_label import main

#: Seconds of the utterances: three of one length, one too long, one almost.
SECONDS = [0.5, 0.8, 0.8, 25.0, 0.3, 24.99, 0.8, 0.5]


@pytest.fixture(scope="module")
def ctc(tmp_path_factory):
    """Folder of a wav2vec2 with random weights and our letters."""
    folder = tmp_path_factory.mktemp("ctc")
    torch.manual_seed(1)
    config = transformers.Wav2Vec2Config(
        **tiny.ENCODER, vocab_size=len(VOCABULARY), pad_token_id=0
    )
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    letters = {symbol: index for index, symbol in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(letters))
    transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(),
        transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json"),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """Folder of a Whisper with random weights, which knows three languages."""
    folder = tmp_path_factory.mktemp("whisper")
    codes = [f"<|{code}|>" for code in ("en", "fr", "de")]
    tasks = ["translate", "transcribe"]
    special = ["<|startoftranscript|>", *codes, *(f"<|{task}|>" for task in tasks)]
    special += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    symbols = {
        symbol: index for index, symbol in enumerate(bytes_to_unicode().values())
    }
    tokenizer = transformers.WhisperTokenizer(
        vocab=symbols,
        merges=[],
        pad_token="<|endoftext|>",
        extra_special_tokens=special,
    )
    tokenizer.add_tokens([f"<|{0.02 * i:.2f}|>" for i in range(1501)])
    end, start, *language_ids = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|startoftranscript|>", *codes]
    )
    torch.manual_seed(1)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_target_positions=32,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    with torch.no_grad():
        # Otherwise random weights detect one language, whatever they hear.
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        model.model.decoder.layers[0].encoder_attn.out_proj.weight.mul_(20)
    letters = {i for s, i in symbols.items() if s.isascii() and s.isalpha()}
    model.generation_config = transformers.GenerationConfig(
        is_multilingual=True,
        lang_to_id=dict(zip(codes, language_ids, strict=True)),
        task_to_id={t: tokenizer.convert_tokens_to_ids(f"<|{t}|>") for t in tasks},
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        decoder_start_token_id=start,
        eos_token_id=end,
        bos_token_id=end,
        pad_token_id=end,
        max_initial_timestamp_index=50,
        max_length=12,
        num_beams=1,
        return_timestamps=False,
        suppress_tokens=sorted(set(range(len(tokenizer))) - letters - {end}),
        begin_suppress_tokens=[end],
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def write_csv(folder, seconds, name="train.csv"):
    """A CSV of noise files, of different colour and loudness."""
    rows = []
    for number, length in enumerate(seconds):
        random = np.random.default_rng(number)
        samples = round(length * 16000)
        noise = random.normal(size=samples)
        if number % 2:
            noise = np.convolve(noise, np.ones(2 + number), "same")
        path = folder / f"{name}-{number}.wav"
        soundfile.write(path, noise * 0.03 / noise.std(), 16000, subtype="PCM_16")
        identity = f"id{number:05d}--{name[0]}--00001"
        rows.append(
            {"ID": identity, "wav": path, "start": 0, "stop": samples, "spk_id": "a"}
        )
    pandas.DataFrame(rows).to_csv(folder / name, index=False)
    return folder / name


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A CSV of utterances of ``SECONDS``."""
    return write_csv(tmp_path_factory.mktemp("utterances"), SECONDS)


def label(*csvs, model, output, **options):
    """Run the command within this process; the lines of its output."""
    arguments = {"model": model, "output": output, "device": "cpu", "num_workers": 1}
    arguments |= options
    main([*map(str, csvs), *(f"--{key}={value}" for key, value in arguments.items())])
    return [json.loads(line) for line in output.read_text().splitlines()]


def alone(folder, waves):
    """What the pipeline says of one waveform after the other."""
    pipeline = transformers.pipeline(
        "automatic-speech-recognition", model=str(folder), device="cpu"
    )
    return [pipeline(wave)["text"].strip() for wave in waves], pipeline


def read(table):
    """The utterances of a CSV by ID."""
    rows = pandas.read_csv(table)
    return {
        i: soundfile.read(p)[0] for i, p in zip(rows["ID"], rows["wav"], strict=True)
    }


def error_of(capsys, *arguments):
    """The one line in which the command ends."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and told.count("error: ") == 1
    assert told.splitlines()[-1].startswith("error: ")
    return told.splitlines()[-1]


def test_each_utterance_has_one_line_and_the_model_s_own_words(
    ctc, table, tmp_path, capsys, monkeypatch
):
    sizes = []
    transcribe = pseudo_label.Recogniser.transcribe

    def spy(self, waves):
        sizes.append([len(wave) for wave in waves])
        return transcribe(self, waves)

    monkeypatch.setattr(pseudo_label.Recogniser, "transcribe", spy)
    bars, progress_bar = [], pseudo_label.progress_bar

    def kept(*arguments, **settings):
        bars.append(progress_bar(*arguments, **settings))
        return bars[-1]

    monkeypatch.setattr(pseudo_label, "progress_bar", kept)
    heading, *lines = label(
        table, model=ctc, output=tmp_path / "new" / "a.jsonl", batch_samples=30000
    )
    assert heading == {"model": str(ctc), "dtype": "float32", "language": None}
    utterances = read(table)
    assert {line["ID"] for line in lines} == set(utterances)
    assert [line["seconds"] for line in lines] == sorted(SECONDS, reverse=True)
    assert lines[0]["text"] is None, "25 s are too long"
    words, _ = alone(ctc, [utterances[line["ID"]] for line in lines[1:]])
    assert [line["text"] for line in lines[1:]] == words
    assert len(set(words)) == len(words)
    assert {line["language"] for line in lines} == {None}
    # One length in a batch, two of 0.8 s in 30,000 samples, the longest first.
    assert sizes == [[399840], [12800] * 2, [12800], [8000] * 2, [4800]]
    captured = capsys.readouterr()
    assert "8 of 8 utterances; now 0.01 hours of speech" in captured.out
    assert [(bar.n, bar.total) for bar in bars] == [(8, 8)]
    read_back = read_transcripts(tmp_path / "new" / "a.jsonl")
    assert {i: t.text for i, t in read_back.items()} == {
        line["ID"]: line["text"] for line in lines
    }


def test_a_finished_file_is_left_alone_and_another_csv_is_added(
    ctc, table, tmp_path, capsys, monkeypatch
):
    output = tmp_path / "a.jsonl"
    first = label(table, model=ctc, output=output)
    before = output.read_bytes()
    monkeypatch.setattr(pseudo_label, "Recogniser", None)
    assert label(table, model=ctc, output=output) == first
    assert output.read_bytes() == before
    assert "8 of 8 utterances, nothing was left to do" in capsys.readouterr().out
    monkeypatch.undo()
    valid = write_csv(tmp_path, [0.4, 0.6], "valid.csv")
    both = label(table, valid, model=ctc, output=output)
    assert output.read_bytes().startswith(before)
    assert {line["ID"] for line in both[len(first) :]} == set(read(valid))


def test_every_cut_is_resumed_to_the_same_file(ctc, tmp_path, capsys):
    """Within the first line, a line, a batch, and between two lines."""
    table = write_csv(tmp_path, [0.5, 0.5, 0.5, 26, 0.3, 0.3, 0.5])
    output = tmp_path / "a.jsonl"
    settings = {"model": ctc, "output": output, "batch_samples": 24000}
    label(table, **settings)
    whole = output.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    for cut in (0, 7, ends[0], ends[0] + 5, ends[2], ends[3] - 1, ends[4], ends[6] + 1):
        output.write_bytes(whole[:cut])
        capsys.readouterr()
        label(table, **settings)
        assert output.read_bytes() == whole
        told = "cut off an unfinished last line" in capsys.readouterr().err
        assert told == (cut not in (0, *ends))


def command(*arguments):
    return [sys.executable, "-m", "tools.pseudo_label", *map(str, arguments)]


def stop_amid(arguments, output, repository, lines, number):
    """Start the command; send the signal when the output has more than ``lines``.

    Returns the exit status, what it told, and how many utterances were complete.
    """
    started = subprocess.Popen(
        command(*arguments),
        cwd=repository,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while started.poll() is None:
        if output.is_file() and output.read_bytes().count(b"\n") > lines:
            started.send_signal(number)
            break
        time.sleep(0.01)
    _, told = started.communicate(timeout=60)
    return started.returncode, told, output.read_bytes().count(b"\n") - 1


@pytest.mark.slow
def test_a_stopped_run_goes_on(ctc, tmp_path, repository):
    """Stopped twice amid many batches, it ends in the file of a run without a stop."""
    table = write_csv(tmp_path, [0.2 + 0.0001 * number for number in range(500)])
    output = tmp_path / "stopped.jsonl"
    arguments = [table, f"--model={ctc}", f"--output={output}", "--device=cpu"]
    stop = (arguments, output, repository)
    status, told, complete = stop_amid(*stop, 10, signal.SIGINT)
    assert status == 130 and "Traceback" not in told
    assert 10 <= complete < 500, "it was not stopped amid its work"
    assert f"{complete} of 500 utterances" in told.splitlines()[-1]
    status, told, more = stop_amid(*stop, complete + 10, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert complete < more < 500, "it was not stopped amid its work"
    assert f"{complete} utterances are there; going on" in told
    # The readers of the killed process may still be there: they hold nothing.
    label(table, model=ctc, output=output)
    label(table, model=ctc, output=tmp_path / "whole.jsonl")
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_processes_do_not_write_one_file(ctc, table, tmp_path, capfd):
    output = tmp_path / "a.jsonl"
    heading = {"model": str(ctc), "dtype": "float32", "language": None}
    with pseudo_label.Output(output, heading, pseudo_label.Waveforms([table])):
        # A fork has imported everything.
        second = multiprocessing.get_context("fork").Process(
            target=main, args=([str(table), f"--model={ctc}", f"--output={output}"],)
        )
        second.start()
        second.join(60)
    assert second.exitcode == 2
    assert "another process writes it" in capfd.readouterr().err.splitlines()[-1]


def test_whisper_tells_the_language_of_each_utterance(whisper, table, tmp_path):
    _, *lines = label(
        table, model=whisper, output=tmp_path / "a.jsonl", batch_samples=1_500_000
    )
    utterances = read(table)
    waves = [utterances[line["ID"]] for line in lines[1:]]
    words, pipeline = alone(whisper, waves)
    assert [line["text"] for line in lines[1:]] == words
    assert all(word.isascii() and word.isalpha() for word in words)
    codes = {i: t[2:-2] for t, i in pipeline.model.generation_config.lang_to_id.items()}
    languages = []
    for wave in waves:
        features = pipeline.feature_extractor(
            wave, sampling_rate=16000, return_tensors="pt"
        )
        found = pipeline.model.detect_language(features.input_features)
        languages.append(codes[int(found)])
    assert [line["language"] for line in lines] == [None, *languages]
    assert len(set(languages)) > 1, "the model hears one language only"


def test_whisper_can_be_told_the_language(whisper, table, tmp_path, capsys):
    output = tmp_path / "a.jsonl"
    heading, *lines = label(table, model=whisper, output=output, language="fr")
    assert heading["language"] == "fr"
    assert [line["language"] for line in lines] == [None, *["fr"] * 7]
    # It is really told: a random model says other words in another language.
    _, *german = label(table, model=whisper, output=tmp_path / "b", language="de")
    assert [line["text"] for line in german] != [line["text"] for line in lines]
    line = error_of(
        capsys,
        table,
        f"--model={whisper}",
        f"--output={tmp_path / 'c'}",
        "--language=english",
    )
    assert "can be told de, en, fr; correct or omit it" in line


def test_half_precision(ctc, table, tmp_path, capsys):
    heading, *lines = label(
        table, model=ctc, output=tmp_path / "a.jsonl", dtype="bfloat16"
    )
    assert heading["dtype"] == "bfloat16" and len(lines) == len(SECONDS)
    line = error_of(capsys, table, f"--model={ctc}", f"--output={tmp_path / 'a.jsonl'}")
    assert "was begun with --dtype=bfloat16, not float32; give the same" in line


def test_another_model_or_corpus_is_refused(ctc, whisper, table, tmp_path, capsys):
    output = tmp_path / "a.jsonl"
    label(table, model=ctc, output=output)
    before = output.read_bytes()
    given = f"--output={output}"
    line = error_of(capsys, table, f"--model={whisper}", given)
    assert f"was begun with --model={ctc}, not {whisper}" in line
    other = write_csv(tmp_path, [0.4], "other.csv")
    line = error_of(capsys, other, f"--model={ctc}", given)
    assert "a.jsonl, line 2: 'id00003--t--00001' is in none of the CSVs" in line
    assert output.read_bytes() == before
    output.write_text('{"ID": "a", "text": "b"}\n')
    line = error_of(capsys, table, f"--model={ctc}", given)
    assert "line 1: this tool did not begin that file" in line
    output.write_text("some words\nmore\n")
    line = error_of(capsys, table, f"--model={ctc}", given)
    assert "a.jsonl, line 1: no JSON: Expecting value" in line


@pytest.mark.fault(
    "C6",
    "pseudo_label --output=A FILE OF MINE without a line end at its end",
    "refused, and not a byte of it is cut off",
)
@pytest.mark.parametrize("content", ["words", "a\nb", '{"ID": "a", "text": "b"}\nc'])
def test_a_foreign_file_is_not_cut(ctc, table, tmp_path, capsys, content):
    output = tmp_path / "mine.txt"
    output.write_text(content)
    line = error_of(capsys, table, f"--model={ctc}", f"--output={output}")
    assert "did not begin that file" in line or "line 1: no JSON: " in line
    assert output.read_text() == content


def test_numbers_that_mean_nothing(ctc, table, tmp_path, capsys):
    given = [table, f"--model={ctc}", f"--output={tmp_path / 'a'}"]
    for option, told in (("batch_samples", "from 400 to"), ("num_workers", "=0")):
        error = error_of(capsys, *given, f"--{option}=0")
        assert option in error and told in error
    assert not (tmp_path / "a").exists()


def test_what_cannot_transcribe_is_refused(ctc, table, tmp_path, capsys):
    given = [table, f"--output={tmp_path / 'a.jsonl'}", "--device=cpu"]
    line = error_of(capsys, *given, f"--model={tmp_path / 'absent'}")
    assert "absent, --device=cpu: no speech recogniser can be loaded" in line
    line = error_of(capsys, *given, f"--model={ctc}", "--device=abacus")
    assert "--device=abacus: no speech recogniser can be loaded" in line
    line = error_of(capsys, *given, f"--model={ctc}", "--language=en")
    assert "can be told no language" in line
    # An encoder with a tokenizer: transformers would make up a head for it.
    encoder = tmp_path / "encoder"
    transformers.Wav2Vec2Model.from_pretrained(ctc).save_pretrained(encoder)
    transformers.Wav2Vec2Processor.from_pretrained(ctc).save_pretrained(encoder)
    line = error_of(capsys, *given, f"--model={encoder}")
    assert "holds Wav2Vec2Model, not Wav2Vec2ForCTC: it was not trained to" in line
    # None of these attempts is in the way of a correct one.
    assert len(label(table, model=ctc, output=tmp_path / "a.jsonl")) == 9


def test_wrong_input_is_named(ctc, table, tmp_path, capsys):
    given = [f"--model={ctc}", f"--output={tmp_path / 'a.jsonl'}", "--device=cpu"]
    assert "absent.csv does not exist" in error_of(
        capsys, tmp_path / "absent.csv", *given
    )
    line = error_of(capsys, table, write_csv(tmp_path, [0.4]), *given)
    assert "'id00000--t--00001' stands also in" in line
    bad = write_csv(tmp_path, [0.4, 0.4], "bad.csv")
    (tmp_path / "bad.csv-1.wav").write_bytes(b"RIFF")
    assert "bad.csv-1.wav: it is not readable as audio" in error_of(capsys, bad, *given)
    (tmp_path / "file").write_text("")
    line = error_of(capsys, table, f"--model={ctc}", f"--output={tmp_path}/file/a")
    assert "cannot be written (" in line


def test_too_little_memory_is_told(ctc, table, tmp_path, capsys, monkeypatch):
    def full(self, waves):
        raise torch.OutOfMemoryError("many\nlines")

    monkeypatch.setattr(pseudo_label.Recogniser, "transcribe", full)
    line = error_of(
        capsys, table, f"--model={ctc}", f"--output={tmp_path / 'a'}", "--device=cpu"
    )
    assert "--batch_samples=3200000: the device has too little memory for 1 utt" in line
