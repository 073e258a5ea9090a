"""docs/settings.md: every stock key has a row, and every key of ours exists."""

import re

import pytest

from lobes.runs.command_line import REFUSED_RUN_OPTIONS
from lobes.runs.variants import keys_of, load_variant
from lobes.system.checkout import ROOT

PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")

#: Top-level keys of the stock YAMLs (speechbrain/speechbrain at 1c67ddf, 0786b0b and
#: 0d7092c).
STOCK = {
    "LibriSpeech, CTC on wav2vec2": """
        seed __set_seed output_folder output_wer_folder save_folder train_log
        wav2vec2_hub wav2vec2_folder data_folder train_splits dev_splits test_splits
        skip_prep ckpt_interval_minutes train_csv valid_csv test_csv
        number_of_epochs lr lr_wav2vec sorting precision sample_rate batch_size
        test_batch_size train_dataloader_opts valid_dataloader_opts
        test_dataloader_opts activation dnn_layers dnn_neurons freeze_wav2vec
        output_neurons blank_index label_encoder epoch_counter enc wav2vec2 ctc_lin
        log_softmax ctc_cost modules model model_opt_class wav2vec_opt_class
        lr_annealing_model lr_annealing_wav2vec speed_perturb drop_freq drop_chunk
        wav_augment test_beam_search checkpointer train_logger error_rate_computer
        cer_computer""",
    "VoxCeleb, ECAPA-TDNN": """
        seed __set_seed output_folder save_folder train_log NOISE_DATASET_URL
        RIR_DATASET_URL data_folder data_folder_noise data_folder_rir
        train_annotation valid_annotation noise_annotation rir_annotation
        verification_file split_ratio skip_prep ckpt_interval_minutes
        number_of_epochs batch_size lr base_lr max_lr step_size sample_rate
        sentence_len shuffle random_chunk n_mels left_frames right_frames deltas
        out_n_neurons num_workers dataloader_options compute_features
        embedding_model classifier epoch_counter prepare_noise_data add_noise
        prepare_rir_data add_reverb drop_freq drop_chunk wav_augment mean_var_norm
        modules compute_cost opt_class lr_annealing train_logger error_stats
        checkpointer
        voxceleb_source device pretrain_path pretrainer train_data enrol_data
        test_data score_norm cohort_size n_train_snts train_dataloader_opts
        enrol_dataloader_opts test_dataloader_opts""",
}

YAMLS = [
    "LibriSpeech/ASR/hparams/asr.yaml",
    "VoxCeleb/SpeakerRec/hparams/speaker.yaml",
]


def rows(title):
    """(stock keys, our keys, remark) of the tables below one heading."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [(*(re.findall(r"`([^`]+)`", c) for c in row[:2]), row) for row in cells]


@pytest.mark.parametrize("title", STOCK)
def test_every_stock_key_has_a_row_and_no_other_has(title):
    named = [key for stock, _, _ in rows(title) for key in stock]
    assert set(named) == set(STOCK[title].split())


@pytest.mark.parametrize("title", STOCK)
def test_every_row_names_our_key_or_a_reason(title):
    for _, ours, (_, cell, remark) in rows(title):
        assert ours or (cell == "-" and remark), remark


def test_every_key_of_ours_exists():
    for title, yaml in zip(STOCK, YAMLS, strict=True):
        tree = load_variant(ROOT / "recipes" / yaml)[0]
        keys = {*tree, *keys_of(tree)}
        named = {key for _, ours, _ in rows(title) for key in ours}
        # Remarks name arguments of objects, and files.
        cells = " ".join(row[2] for *_, row in rows(title))
        dotted = re.findall(r"`(\w+(?:\.\w+)+)`", cells)
        named |= {key for key in dotted if not re.search(r"\.(csv|txt|py)$", key)}
        assert named <= keys, f"{yaml}: {named - keys}"


def test_every_refused_run_option_is_named():
    section = PAGE.split("## Run options\n")[1]
    refused = re.findall(r"^\| (.*?) \| refused: ", section, re.MULTILINE)
    named = {name for cell in refused for name in re.findall(r"`--(\w+)`", cell)}
    assert named == set(REFUSED_RUN_OPTIONS)
