"""How a version gets to each mirror: the process that ``mirrors`` starts. It reads one JSON object and writes one.

Source: wandb 0.31 ``Artifact.add_dir``; MLflow 3.17 ``MlflowClient``; huggingface_hub 2.4 ``HfApi.upload_folder``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steps.lib.durable import write
from steps.lib.tickets import abandoned, mark
from steps.lib.tracking import resolve_mode

PARTIAL, DRAFT = ".partial", ".tmp"


@dataclass(frozen=True)
class Load:
    """What is copied."""

    settings: dict[str, Any]
    """Of the mirror, as its section of the configuration has them."""
    folder: Path
    """The version's."""
    model: str
    version: str
    digest: str
    """sha256 of the version's manifest."""
    facts: dict[str, str]
    aliases: list[str]


def to_folder(load: Load) -> str:
    """Copy a version into a folder; its name is there when all of it is."""
    home = Path(load.settings["folder"]).resolve() / load.model
    home.mkdir(parents=True, exist_ok=True)
    for left in abandoned(home, f".*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
    target = home / load.version
    if not target.exists():
        draft = home / f".{mark()}{PARTIAL}"
        shutil.copytree(load.folder, draft)
        draft.rename(target)
    path = home / "aliases.json"
    aliases = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    draft = home / f".{mark()}{DRAFT}"
    moved = {**_others(aliases, load.version), **dict.fromkeys(load.aliases, load.version)}
    write(draft, json.dumps(moved, indent=1) + "\n")
    os.replace(draft, path)
    return str(target)


def to_wandb(load: Load) -> str:
    """Log a version as an artifact of type model."""
    os.environ.update(WANDB_DISABLE_GIT="true", WANDB_DISABLE_CODE="true", WANDB_SILENT="true")
    folder = Path(load.settings["folder"]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True, x_disable_meta=True
    )
    session = wandb.init(
        project=load.settings["project"],
        job_type="registry",
        name=load.version,
        mode=resolve_mode(load.settings["mode"]),
        dir=str(folder),
        settings=settings,
    )
    artifact = wandb.Artifact(load.model, type="model", metadata={**load.facts, "manifest_sha256": load.digest})
    artifact.add_dir(str(load.folder), policy="immutable")
    logged = session.log_artifact(artifact, aliases=[load.version, *load.aliases])
    if not session.settings._offline:
        logged.wait()
    place = str(session.url or session.dir)
    session.finish()
    return place


def to_mlflow(load: Load) -> str:
    """Register a version in MLflow, with its digest as a tag, and set the aliases; one that is there is not sent again."""
    uri = load.settings["tracking_uri"]
    if uri.startswith("file:") or "://" not in uri:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient  # type: ignore[import-not-found]  # optional
    from mlflow.exceptions import MlflowException  # type: ignore[import-not-found]

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        client.get_registered_model(load.model)
    except MlflowException:
        client.create_registered_model(load.model)
    there = [
        one
        for one in client.search_model_versions(f"name='{load.model}'")
        if one.tags.get("manifest_sha256") == load.digest
    ]
    if there:
        number = str(there[0].version)
    else:
        name = f"prefline-{load.model}"
        experiment = client.get_experiment_by_name(name)
        run = client.create_run(
            experiment.experiment_id if experiment else client.create_experiment(name), run_name=load.version
        )
        client.log_artifacts(run.info.run_id, str(load.folder), "model")
        client.set_terminated(run.info.run_id)
        tags = {**load.facts, "manifest_sha256": load.digest, "version": load.version}
        source = f"{run.info.artifact_uri}/model"
        number = str(client.create_model_version(load.model, source, run_id=run.info.run_id, tags=tags).version)
    for alias in load.aliases:
        client.set_registered_model_alias(load.model, alias, number)
    return f"{uri} {load.model} version {number}"


def to_hub(load: Load) -> str:
    """Commit a version to a repository, and tag the commit with its name and its aliases."""
    from huggingface_hub import HfApi

    api, repo = HfApi(), load.settings["repo"]
    api.create_repo(repo, private=load.settings["private"], exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=str(load.folder),
        commit_message=f"{load.model} {load.version}",
        delete_patterns="*",  # a version is whole: nothing of the one before stays
    )
    tags = {one.name for one in api.list_repo_refs(repo).tags}
    for tag in (load.version, *load.aliases):
        if tag in tags:
            api.delete_tag(repo, tag=tag)
        api.create_tag(repo, tag=tag, revision=commit.oid)
    return str(commit.commit_url)


def _others(aliases: dict[str, str], version: str) -> dict[str, str]:
    """Aliases that are at other versions: the ones that a version has are told anew."""
    return {alias: one for alias, one in aliases.items() if one != version}


DOORS = {"folder": to_folder, "wandb": to_wandb, "mlflow": to_mlflow, "hub": to_hub}


def main() -> None:
    """Send the version that standard input tells of, and write what came of it to the file it names."""
    payload = json.load(sys.stdin)
    told, kind = Path(payload.pop("told")), payload.pop("kind")
    load = Load(**{**payload, "folder": Path(payload["folder"])})
    try:
        answer = {"ok": True, "said": DOORS[kind](load)}
    except Exception as error:
        answer = {"ok": False, "said": f"{type(error).__name__}: {error}"}
    write(told, json.dumps(answer))


if __name__ == "__main__":
    main()
