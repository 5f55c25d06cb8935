import pickle

from pipeline.errors import AudioError


def test_an_error_with_two_arguments_crosses_process_boundaries():
    error = pickle.loads(pickle.dumps(AudioError("truncated", "half of it")))

    assert (error.reason, error.detail, str(error)) == ("truncated", "half of it", "truncated: half of it")
