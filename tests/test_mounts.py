from fer_helpers import mounts


def test_attached_files_are_found_at_any_depth_and_not_among_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(mounts, "KAGGLE_INPUT", tmp_path)
    for name in (
        "slug/a.json",
        "notebooks/owner/slug/runs/demo/a.json",
        "datasets/owner/slug/train/a.json",
        "datasets/owner/slug/Validation/a.json",
        "datasets/owner/slug/b/a.json",
        "slug/not-a.json",
        "slug/axjson",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in mounts.attached_files(r"a\.json")]
    assert found == [
        "datasets/owner/slug/b/a.json",
        "notebooks/owner/slug/runs/demo/a.json",
        "slug/a.json",
    ]


def test_off_kaggle_nothing_is_attached(tmp_path, monkeypatch):
    monkeypatch.setattr(mounts, "KAGGLE_INPUT", tmp_path / "nowhere")
    assert list(mounts.attached_files(".*")) == []
