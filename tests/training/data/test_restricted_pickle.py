import os
import pickle
import struct

import pytest

from xsam_training.data.restricted_pickle import load_restricted_pickle


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def written(tmp_path, content: bytes):
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path, protocol):
    refs = [
        {"ref_id": 0, "sentences": [{"sent": "grüner Kreis", "tokens": ("a",)}], "area": 1.5, "big": 2**70, "x": None}
    ]
    path = written(tmp_path, pickle.dumps(refs, protocol))
    assert load_restricted_pickle(path) == refs


def test_strings_of_python_2_become_text(tmp_path):
    # Protocol 0: a list of a dictionary with STRING opcodes, as Python 2 wrote `[{'sent': 'caf\xe9'}]`.
    old = b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xe9'\np3\nsa."
    assert load_restricted_pickle(written(tmp_path, old)) == [{"sent": "café"}]
    # Protocol 2: SHORT_BINSTRING, BINSTRING and LONG1.
    key, text = b"U\x04sent", b"T" + struct.pack("<i", 8) + b"the caf\xe9"
    binary = b"\x80\x02]q\x00}q\x01(" + key + text + b"U\x02id\x8a\x01\x07ua."
    assert load_restricted_pickle(written(tmp_path, binary)) == [{"sent": "the café", "id": 7}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_command_is_refused_and_not_run(tmp_path, protocol):
    witness = tmp_path / "witness"
    path = written(tmp_path, pickle.dumps([1, Command(f"touch {witness}")], protocol))
    with pytest.raises(ValueError, match=r"refused: it asks for \w+\.system"):
        load_restricted_pickle(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"(S'touch witness'\nios\nsystem\n.",
        b"cos\nsystem\n(S'touch witness'\ntR.",
        b"(cos\nsystem\nS'touch witness'\no.",
    ],
    ids=["INST", "GLOBAL and REDUCE", "OBJ"],
)
def test_other_ways_to_a_call_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"it asks for os\.system"):
        load_restricted_pickle(written(tmp_path, content))
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("content", [b"Pobject 5\n.", b"\x80\x02U\x08object 5Q."], ids=["PERSID", "BINPERSID"])
def test_persistent_ids_are_refused(tmp_path, content):
    with pytest.raises(ValueError, match="external object 'object 5'"):
        load_restricted_pickle(written(tmp_path, content))


@pytest.mark.parametrize("content", [b"", b"\x80\x02]q\x00(K", b"not a pickle", pickle.dumps([1, 2])[:-1]])
def test_damage_names_the_file(tmp_path, content):
    with pytest.raises(ValueError, match=r"refs\.p"):
        load_restricted_pickle(written(tmp_path, content))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_restricted_pickle(tmp_path / "refs.p")
