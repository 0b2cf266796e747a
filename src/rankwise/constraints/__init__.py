"""Constraints: what answers may be, checked where it is given and followed token by token."""
