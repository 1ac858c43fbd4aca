"""The two files that people write: `rearguard.yaml` and `rollback_playbook.yaml`.

Owns their reading, their validation and the commented files that `rearguard init` writes. Everybody else receives the
frozen values of `rearguard.model.settings` and trusts them. Whatever a file holds, reading it ends, in bounded time and
memory, in a value or in one `ConfigError` that names file, line, key, value and the accepted form.
"""
