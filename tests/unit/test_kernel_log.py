"""Which lines of the kernel's log speak of failing hardware."""

import pytest

from galactica.agent.health.kernel_log import KernelLog, is_trouble


@pytest.mark.parametrize(
    "text",
    [
        b"blk_update_request: I/O error, dev sdb, sector 2048 op 0x0:(READ)",
        b"Buffer I/O error on dev dm-0, logical block 0, async page read",
        b"EXT4-fs error (device sda1): ext4_find_entry:1455: inode #2: comm ls: reading directory",
        b"XFS (nvme0n1p1): Metadata corruption detected at xfs_agf_read_verify",
        b"nvme nvme0: I/O 12 QID 3 timeout, aborting",
        b"mce: [Hardware Error]: Machine check events logged",
        b"EDAC MC0: 1 UE memory read error on CPU_SrcID#0",
        b"INFO: task jbd2/sda1-8:312 blocked for more than 120 seconds.",
    ],
)
def test_failing_disks_memory_and_hung_tasks_are_trouble(text: bytes) -> None:
    assert is_trouble(b"3,4711,98765,-;" + text + b"\n SUBSYSTEM=block\n")


@pytest.mark.parametrize(
    "record",
    [
        b"6,1,1,-;nvme nvme0: 8/0/0 default/read/poll queues\n",
        b"4,1,1,-;Buffer I/O error on dev dm-0\n",
        b"11,1,1,-;I/O error, as somebody who is not the kernel says\n",
        b"3,1,1,-;usb 1-1: device descriptor read/64\n",
        b"3,1,1,-;fine\n DEVICE=I/O error\n",
        b"x,1,1,-;I/O error\n",
        b"",
    ],
)
def test_lesser_lines_and_those_of_other_writers_are_not(record: bytes) -> None:
    assert not is_trouble(record)


def test_a_log_that_is_not_there_says_nothing(tmp_path) -> None:
    assert KernelLog(tmp_path / "none").count(1.0) is None
