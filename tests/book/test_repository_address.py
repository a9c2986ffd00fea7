"""Where the book says that its repository is."""

import subprocess

import pytest
import yaml

from thesis_book.render import build as render
from thesis_lib.common.errors import InvalidInput


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository without a remote, and nothing set by hand."""
    monkeypatch.delenv("THESIS_REPOSITORY", raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "_config.yml").write_text("sphinx: {config: {html_context: {}}}\n")
    return tmp_path


def add_origin(checkout, address):
    command = ["git", "-C", str(checkout), "remote", "add", "origin", address]
    subprocess.run(command, check=True)


HERE = "https://github.com/example/thesis"


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        (f"{HERE}/", HERE),
        ("https://somebody:secret@github.com/example/thesis.git", HERE),
        ("git@github.com:example/thesis.io.git", f"{HERE}.io"),
        ("ssh://git@github.com/example/thesis.git", HERE),
        ("https://github.com.example.org/example/thesis", None),
        ("https://notgithub.com/example/thesis", None),
        ("https://github.com/example", None),
        ("/srv/github.com/example/thesis", None),
    ],
)
def test_an_origin_on_github_is_the_address_in_one_form(checkout, origin, address):
    add_origin(checkout, origin)
    assert render.repository_address(checkout) == address
    inside = checkout / "unpacked"  # is another copy, for which git would answer
    inside.mkdir()
    (inside / "_config.yml").write_text("{}\n")
    assert render.repository_address(inside) is None


def test_the_environment_comes_before_the_origin_and_that_before_the_configuration(
    checkout, monkeypatch
):
    assert render.repository_address(checkout) is None
    config = {"repository": {"url": "https://github.com/third/thesis"}}
    (checkout / "_config.yml").write_text(yaml.safe_dump(config))
    assert render.repository_address(checkout) == "https://github.com/third/thesis"
    add_origin(checkout, "https://github.com/second/thesis")
    assert render.repository_address(checkout) == "https://github.com/second/thesis"
    monkeypatch.setenv("THESIS_REPOSITORY", "https://github.com/first/thesis")
    assert render.repository_address(checkout) == "https://github.com/first/thesis"


def test_what_was_set_by_hand_and_is_no_address_is_rejected(checkout, monkeypatch):
    (checkout / "_config.yml").write_text("repository: {url: example/thesis}\n")
    with pytest.raises(InvalidInput, match=r"_config\.yml is 'example/thesis'"):
        render.repository_address(checkout)
    monkeypatch.setenv("THESIS_REPOSITORY", "https://example.org/thesis")
    with pytest.raises(InvalidInput, match="THESIS_REPOSITORY is 'https://example"):
        render.repository_address(checkout)


def test_what_sphinx_reads_carries_the_address_only_where_there_is_one(
    checkout, tmp_path_factory
):
    source = tmp_path_factory.mktemp("source")
    before = (checkout / "_config.yml").read_text()
    render._stage_config(checkout, source)
    assert (source / "_config.yml").read_text() == before
    add_origin(checkout, HERE)
    render._stage_config(checkout, source)
    staged = yaml.safe_load((source / "_config.yml").read_text())
    assert staged["sphinx"]["config"]["html_context"] == {"thesis_repository": HERE}
