"""What a run was made with."""

from __future__ import annotations

import json
import subprocess

import pytest

from headway.runs.lineage import provenance


@pytest.fixture(autouse=True)
def asked_again(monkeypatch):
    monkeypatch.delenv(provenance.GIT_VARIABLE, raising=False)
    provenance.git_facts.cache_clear()
    yield
    provenance.git_facts.cache_clear()


def git(folder, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Ann", "-c", "user.email=ann@example.com", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "code.py").write_text("x = 1")
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "remote", "add", "origin", "https://ann:s3cret@example.com/code.git")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "Begin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commit_branch_and_address_are_those_of_the_working_folder(repository):
    assert provenance.git_facts() == {
        "mlflow.source.git.commit": git(repository, "rev-parse", "HEAD"),
        "mlflow.source.git.dirty": "false",
        "mlflow.source.git.branch": "main",
        "mlflow.source.git.repoURL": "https://ann:***@example.com/code.git",
    }


def test_a_tree_is_dirty_if_a_tracked_file_has_changed(repository):
    (repository / "results.txt").write_text("new")
    assert provenance.git_facts()["mlflow.source.git.dirty"] == "false"
    provenance.git_facts.cache_clear()
    (repository / "code.py").write_text("x = 2")
    assert provenance.git_facts()["mlflow.source.git.dirty"] == "true"


def test_outside_a_repository_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_facts() == {}
    monkeypatch.setenv("PATH", "")
    provenance.git_facts.cache_clear()
    assert provenance.git_facts() == {}


def test_a_submitted_job_has_the_facts_of_whoever_sent_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = {"mlflow.source.git.commit": "0123", "mlflow.source.git.dirty": "false"}
    monkeypatch.setenv(provenance.GIT_VARIABLE, json.dumps(facts))
    assert provenance.git_facts() == facts
    assert provenance.provenance().items() >= facts.items()


def test_the_digest_of_one_is_itself_and_of_several_does_not_depend_on_their_order():
    assert provenance.digest_of_all([]) == provenance.digest_of_all([""]) == ""
    assert provenance.digest_of_all(["a", "a", ""]) == "a"
    assert provenance.digest_of_all(["a", "b"]) == provenance.digest_of_all(["b", "a", "b"])
    assert provenance.digest_of_all(["a", "b"]) != provenance.digest_of_all(["a", "c"])
