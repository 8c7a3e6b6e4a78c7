"""A local folder in the place of the Hugging Face Hub."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub


def serve(folder, replace=setattr):
    """Let Keras save to and load from a folder instead of the Hub.

    Args:
        folder: Path of the folder, which will hold a folder per repository.
        replace: Function that sets an attribute, such as `monkeypatch.setattr`.
    """

    class Api:
        def __init__(self, library_name=None, library_version=None):
            pass

        def create_repo(self, repo_id, exist_ok=False):
            (Path(folder) / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            # Git, unlike copytree, knows no empty folders.
            for path in sorted(Path(folder_path).rglob("*")):
                if path.is_file():
                    copy = Path(folder, repo_id) / path.relative_to(folder_path)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, copy)

        def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id):
            Path(folder, repo_id, path_in_repo).write_bytes(path_or_fileobj)

    def snapshot_download(repo_id, library_name=None, library_version=None):
        return str(Path(folder) / repo_id)

    replace(huggingface_hub, "HfApi", Api)
    replace(huggingface_hub, "upload_file", Api().upload_file)
    replace(huggingface_hub, "snapshot_download", snapshot_download)
