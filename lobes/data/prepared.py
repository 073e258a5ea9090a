"""Where a run's CSVs lie, and whether they are still those that it was trained beside.

Runs share what is prepared from the same corpora with the same options. Every other
set of options has a folder of its own, so that no run overwrites another one's CSVs:
``<prepared_folder>/VoxCeleb/<digest of the options>/train.csv``. What decoding found
out about each audio file lies above, in ``<prepared_folder>/VoxCeleb``, for all.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml.comments import TaggedScalar

from lobes.errors import UserError
from lobes.system.files import read_json, write_atomically

#: What the YAML calls a corpus, and its folder below ``prepared_folder``.
CORPORA = {"librispeech": "LibriSpeech", "voxceleb": "VoxCeleb"}

#: In the output folder: what was in each test set when the run was trained.
TEST_SETS = "test_sets.json"

_REMEDY = "restore it, or delete it and the test sets are not compared with the run's"

# Arguments of the preparation that do not change what it writes.
_SAME_CONTENT = {"save_folder", "journal_folder", "num_workers", "strict", "skip_prep"}

# Arguments that are paths; all others with slashes are relative to one of these.
_PATHS = {"data_folder", "test_folder", "transcripts"}


def name_csv_folders(tree: dict):
    """Fill in ``<corpus>_csv_folder`` where it is null.

    With ``skip_prep`` it becomes ``<prepared_folder>/<corpus>``, which holds the
    user's own CSVs, and else a folder in that, named after the options of the
    preparation. It stays a reference: another ``prepared_folder`` moves it.

    Arguments:
        tree: The merged settings; changed in place.
    """
    for corpus, folder in CORPORA.items():
        key = f"{corpus}_csv_folder"
        if key not in tree or tree[key] is not None:
            continue
        where = f"<prepared_folder>/{folder}"
        if tree.get("skip_prep") is not True and corpus in tree:
            where += f"/{options_digest(_plain(tree[corpus], tree))}"
        tree[key] = TaggedScalar(where, style=None, tag="!ref")


def options_digest(options: dict) -> str:
    """Ten hexadecimal digits of what decides the content of prepared CSVs.

    Arguments:
        options: Arguments of ``prepare_librispeech`` or ``prepare_voxceleb`` (JSON
            types).
    """
    kept = {k: v for k, v in options.items() if k not in _SAME_CONTENT}
    if options.get("strict"):
        kept["skip_budget"] = 0
    for key in _PATHS & kept.keys():
        kept[key] = _absolute(kept[key])
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:10]


def record_test_sets(folder: str | Path, test_sets: Mapping):
    """Write ``test_sets.json``: what the opened test sets of a training hold.

    Arguments:
        folder: Output folder of the run.
        test_sets: Task to ``{name: EvaluationSet}``, all opened.
    """
    rows = {
        key: {"csv": str(one.csv), "digest": one.digest()}
        for key, _, one in _each(test_sets)
    }
    content = json.dumps(rows, indent=1) + "\n"
    write_atomically(Path(folder) / TEST_SETS, content)


def check_test_sets(
    folder: str | Path, test_sets: Mapping, rank: int = 0, world_size: int = 1
):
    """Open test sets; compare them with those that the run was trained beside.

    Where the audio lies does not count. A run without a record is not compared.

    Arguments:
        folder, test_sets: As for ``record_test_sets``; the sets need not be opened.
        rank, world_size: Of this process, as ``EvaluationSet.open`` takes them.

    Raises ``UserError`` for a damaged record, and for a set that is absent, or with
    other utterances, labels or trials.
    """
    path = Path(folder) / TEST_SETS
    if not path.exists():
        return
    rows = read_json(path, _REMEDY)
    try:
        known = {name: (row["csv"], row["digest"]) for name, row in rows.items()}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of test sets; {_REMEDY}") from error
    sets = [
        (name, one, *known[key]) for key, name, one in _each(test_sets) if key in known
    ]
    for name, one, csv, _ in sets:
        if csv != str(one.csv) and not Path(one.csv).is_file():
            raise UserError(
                f"{one.csv} does not exist; {folder} was trained beside the test set "
                f"{name} of {csv}: name that results folder instead of a YAML file, or "
                f"give the options that it was trained with"
            )
    for name, one, csv, digest in sets:
        one.open(rank, world_size)
        if digest != one.digest():
            remedy = "prepare the corpus as it was then"
            if csv != str(one.csv):
                remedy = f"that was {csv}: name the results folder, not a YAML file"
            raise UserError(
                f"{one.csv}: the test set {name} is not the one that {folder} was "
                f"trained beside (other utterances, transcripts or trials); {remedy}, "
                f"or test on it all the same with --allow_changes"
            )


def _each(test_sets):
    """Yield the key in the record, the name and the set."""
    for task, sets in test_sets.items():
        for name, one in sets.items():
            yield f"{task}/{name}", name, one


def _absolute(value):
    """A path, or each of a list, that does not depend on the working folder."""
    if isinstance(value, list):
        return [_absolute(one) for one in value]
    return os.path.abspath(value) if isinstance(value, str) else value


def _plain(node, tree, within=()):
    """A YAML node as plain values, references replaced by what they name.

    One to a key ``within`` which it stands stays: loading will refuse the circle.
    """

    def named(found):
        key = found[1]
        if key not in tree or key in within:
            return found[0]
        return _plain(tree[key], tree, (*within, key))

    if isinstance(node, TaggedScalar):
        whole = re.fullmatch(r"<(\w+)>", node.value)
        if whole:
            return named(whole)
        return re.sub(r"<(\w+)>", lambda found: str(named(found)), node.value)
    if isinstance(node, dict):
        return {str(key): _plain(child, tree, within) for key, child in node.items()}
    if isinstance(node, list):
        return [_plain(child, tree, within) for child in node]
    return node
