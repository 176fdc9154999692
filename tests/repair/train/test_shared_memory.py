"""DeepSpeed's shared memory: what nobody uses goes, what somebody has mapped stays."""

from __future__ import annotations

import mmap
import os

from kvfix.repair.train.shared_memory import forget, sweep


def test_what_is_old_and_unmapped_goes(tmp_path, monkeypatch) -> None:
    prefix = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1"
    for name in ("29500_0", "29500_1", "29501_0", "29502_0"):
        (tmp_path / f"{prefix}_{name}").write_bytes(b"x" * 8192)
    other = tmp_path / "deepspeed_allreduce_buffer_999999_127.0.0.1_29500_0"
    other.write_bytes(b"x")
    for file in tmp_path.iterdir():
        if not file.name.endswith("29502_0"):  # that one was made just now
            os.utime(file, (0, 0))
    with (tmp_path / f"{prefix}_29501_0").open("r+b") as stream:
        with mmap.mmap(stream.fileno(), 0):
            assert sweep(tmp_path) == 2 * 8192
            assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
                [f"{prefix}_29501_0", f"{prefix}_29502_0", other.name]
            )
        assert sweep(tmp_path) == 8192
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29502")
    forget(0, tmp_path)
    forget(1, tmp_path)  # none there
    assert [p.name for p in tmp_path.iterdir()] == [other.name]
