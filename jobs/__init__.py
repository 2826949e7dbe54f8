"""The `fss` command."""

from jobs.own_code import check_own_code

check_own_code()
