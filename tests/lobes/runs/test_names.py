"""Names of tasks, metrics and sets are checked before a training."""

import pytest

from lobes.data.evaluation_sets import EvaluationSet
from lobes.errors import UserError
from lobes.model.tasks import SpeakerRecognition, SpeechRecognition, Task
from lobes.model.weighting import DynamicWeightAverage, StaticWeighting
from lobes.runs.command_line import parse_arguments
from lobes.runs.names import check_keys, check_names, check_sets
from lobes.training.stopping import EarlyStopping
from recipes.LibriSpeech.ASR import train as asr
from recipes.LibriSpeech_VoxCeleb.MTL import train as mtl
from tests.helpers import tiny


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The three recipes' YAMLs, loaded with a tiny encoder; nothing is prepared."""
    folder = tmp_path_factory.mktemp("names")

    def load(yaml):
        return parse_arguments([*tiny.arguments(folder, folder / "run", yaml)])[0]

    return {yaml: load(yaml) for yaml in (tiny.MTL, tiny.ASR, tiny.SPEAKER)}


def problem(hparams, **changes):
    with pytest.raises(UserError) as caught:
        check_names({**hparams, **changes})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("yaml", [tiny.MTL, tiny.ASR, tiny.SPEAKER])
def test_what_the_recipes_name_is_there(yaml, loaded):
    check_keys(loaded[yaml], yaml)
    check_names(loaded[yaml])
    # One YAML's selection may serve systems of one task, too.
    check_names({**loaded[yaml], "selection": {"wer": 0.25, "eer": 1.0}})


@pytest.mark.parametrize(
    "yaml, selection, said",
    [
        (
            tiny.MTL,
            {"foo": 1},
            "selection: no task gives the metric foo; there are bla",
        ),
        (tiny.MTL, {"wer": 1, "eerr": 1}, "the metric eerr; did you mean eer"),
        (
            tiny.ASR,
            {"eer": 1},
            "eer is no metric of the tasks that are validated (spee",
        ),
        (tiny.SPEAKER, {"wer": 1, "eer": 0}, "take some of eer, min_dcf_0.01"),
    ],
)
@pytest.mark.fault(
    "C1",
    "`--selection={foo: 1}`, `{wer: 1, eerr: 1}`, one without a metric of the run",
    '"selection: no task gives the metric eerr; did you mean eer?; there are ..."',
)
def test_a_selection_of_unknown_metrics(yaml, selection, said, loaded):
    assert said in problem(loaded[yaml], selection=selection)
    rates = {"eer": 1, "wear": 1}
    assert "the metric wear" in problem(loaded[yaml], rate_selection=rates)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"metrics": ["wer", "err"]}, "stopping.metrics: no task gives the metric err"),
        ({"limits": {"speech_los": 5}}, "stopping.limits: no task gives the metric sp"),
    ],
)
@pytest.mark.fault(
    "C1",
    "misspelt metrics and limits of `stopping`",
    '"stopping.limits: no task gives the metric speech_los; did you mean ..."',
)
def test_stopping_by_unknown_metrics(settings, said, loaded):
    stopping = EarlyStopping(**settings)
    assert said in problem(loaded[tiny.MTL], stopping=stopping)


@pytest.mark.parametrize(
    "headlines, said",
    [
        ({"foo": "test-other"}, "is a set of speech, which gives no foo"),
        (
            {"wer": "veri_test2"},
            "a set of speaker, which gives no wer; take one of test",
        ),
        (
            {"eer": "test-other"},
            "a set of speech, which gives no eer; take one of veri",
        ),
        ({"wer": "test-othr"}, "which is not among the test sets (test-other, veri_t"),
    ],
)
@pytest.mark.fault(
    "C1",
    "`--headline_sets={foo: test-other}`, `{wer: veri_test2}`",
    '"headline_sets: veri_test2 is a set of speaker, which gives no wer; take one of '
    'test-other", before the training',
)
def test_headlines_of_other_sets(headlines, said, loaded):
    assert said in problem(loaded[tiny.MTL], headline_sets=headlines)


def evaluation_set(*trials):
    return EvaluationSet("x/test.csv", trial_paths=trials)


@pytest.mark.fault(
    "C1",
    "a speech split `test` beside a list `test.txt`",
    '"test sets: test of speaker is the name of two sets, and results go by it; '
    'rename one of the files"',
)
def test_two_sets_of_one_name(loaded):
    speech = {"test": evaluation_set()}
    clash = {"speech": speech, "speaker": {"vox": evaluation_set("a/test.txt")}}
    message = problem(loaded[tiny.MTL], test_sets=clash)
    assert "test of speaker is the name of two sets" in message
    twice = {"a": evaluation_set("a/x.txt"), "b": evaluation_set("b/x.txt")}
    with pytest.raises(UserError, match="x of speaker is the name of two"):
        check_sets({"speaker": twice})
    # Two heads may be tested on one list.
    shared = evaluation_set("a/x.txt")
    check_sets({"speaker": {"a": shared}, "gender": {"a": shared}, "speech": speech})


@pytest.mark.fault(
    "C1",
    "`--trials A/own.txt B/own.txt`",
    '"A/own.txt: 2 trial lists have the name own, by which results go; rename one"',
)
def test_two_trial_lists_of_one_name():
    with pytest.raises(UserError, match="^A/own.txt: 2 trial lists have the name own"):
        evaluation_set("A/own.txt", "B/own.txt")
    evaluation_set("A/own.txt", "B/other.txt")


def test_tasks_and_streams_that_do_not_fit(loaded):
    hparams = loaded[tiny.MTL]
    tasks, streams = hparams["tasks"], hparams["train_streams"]
    one = {"speech": tasks["speech"]}
    assert "train_streams: speaker is none of the" in problem(hparams, tasks=one)
    less = {"speech": streams["speech"]}
    assert "tasks: speaker has no stream in" in problem(hparams, train_streams=less)
    more = {**hparams["valid_sets"], "x": None}
    assert "valid_sets: x is none of the tasks" in problem(hparams, valid_sets=more)
    for weighting in (
        StaticWeighting({"speech": 1.0}),
        DynamicWeightAverage(["speech"]),
    ):
        message = problem(hparams, weighting=weighting)
        assert "weighting: no weight for the task speaker; it has speech" in message
    # With one task there is nothing to weigh.
    check_names({**loaded[tiny.SPEAKER], "weighting": StaticWeighting({"speech": 1.0})})


def test_a_user_s_own_task_may_measure_what_it_likes(loaded):
    class Own(Task):
        need = ("speaker",)

    hparams = loaded[tiny.MTL]
    changes = {"tasks": {**hparams["tasks"], "own": Own()}}
    for key in ("train_streams", "valid_sets"):
        changes[key] = {**hparams[key], "own": hparams[key]["speaker"]}
    check_names({**hparams, **changes, "selection": {"own_accuracy": -1.0}})


def test_the_built_in_tasks_report_what_they_say(tiny_corpus, tmp_path):
    """Otherwise a good name would be refused, or a wrong one taken."""
    system = tiny.brain(tiny_corpus, tmp_path / "run", steps=1, valid_interval=1)
    found = {}
    measured = {name: task.results for name, task in system.tasks.items()}
    for name, task in system.tasks.items():
        task.results = lambda *args, name=name, **kwargs: found.setdefault(
            name, measured[name](*args, **kwargs)
        )
    tiny.fit(system)
    for name, kind in (("speech", SpeechRecognition), ("speaker", SpeakerRecognition)):
        (metrics,) = found[name].values()
        assert set(metrics) == set(kind.reports)


@pytest.mark.parametrize(
    "main, yaml, said",
    [
        (mtl.main, tiny.ASR, "asr.yaml has librispeech, this train.py prepares libri"),
        (
            asr.main,
            tiny.MTL,
            "mtl.yaml has librispeech and voxceleb, this train.py pre",
        ),
        (asr.main, tiny.SPEAKER, "name a YAML of this recipe, or run"),
    ],
)
@pytest.mark.fault(
    "C1",
    "train.py with the YAML of another recipe",
    '"asr.yaml has librispeech, this train.py prepares librispeech and voxceleb; name '
    'a YAML of this recipe, or run .../LibriSpeech/ASR/train.py"',
)
def test_the_yaml_of_another_recipe(main, yaml, said, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(tiny.arguments(tmp_path, tmp_path / "run", yaml))
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.fault(
    "C1",
    "`--encoder.config={hidden_sise: 32}`",
    '"encoder_config: Wav2Vec2Config has no field hidden_sise; did you mean '
    'hidden_size?"',
)
def test_a_misspelt_field_of_the_encoder(tmp_path):
    argv = tiny.arguments(tmp_path, tmp_path / "run", encoder={"hidden_sise": 32})
    with pytest.raises(UserError, match="no field hidden_sise; did you mean hidden_si"):
        parse_arguments(argv)


def test_a_yaml_without_what_a_training_needs(loaded):
    less = {k: v for k, v in loaded[tiny.MTL].items() if k not in ("tasks", "lr")}
    with pytest.raises(
        UserError, match="^x.yaml has no key tasks, lr; name a recipe's"
    ):
        check_keys(less, "x.yaml")
