"""Faults put into the processes around the cores, each with the test that must fail with it."""

from __future__ import annotations

from tests.sim.mutant import Mutant

_TURNS = "tests/health/test_turns.py::"
_LISTENER = "tests/health/test_listener.py::"
_PROCESS = "tests/test_process.py::"
_LINK = "tests/node/test_link.py::"

_KEEP = "        if self._keep:\n            self._save(now_ms)\n"
_TELL = (
    "        for topic, event in self._events:\n"
    "            self._publisher.publish(topic, event)\n"
    '            what = {"node": event.id, "state": event.state.value, "fails": event.fails}\n'
    '            _log.info(topic.value.rstrip("."), reason=event.reason, **what)\n'
    "        self._events.clear()\n"
)


def _of(path: str, test: str, name: str, old: str, new: str) -> Mutant:
    package, _, module = path.rpartition("/")
    return Mutant(name, module, old, new, package=package, test=test)


SHELL_MUTANTS = (
    _of(
        "services/health/main.py",
        _TURNS + "test_while_input_waits_nobody_is_judged_and_not_for_ever",
        "deadlines do not wait for what is still to be read",
        "        if drained or self._undrained > MOST_UNDRAINED:\n"
        "            self._registry.tick(now_ms)\n",
        "        self._registry.tick(now_ms)\n",
    ),
    _of(
        "services/health/main.py",
        _TURNS + "test_while_input_waits_nobody_is_judged_and_not_for_ever",
        "a flood holds deadlines up for ever",
        "        if drained or self._undrained > MOST_UNDRAINED:\n",
        "        if drained:\n",
    ),
    _of(
        "services/health/main.py",
        _TURNS + "test_what_is_published_has_been_kept",
        "state is kept after it was published",
        _KEEP + _TELL,
        _TELL + _KEEP,
    ),
    _of(
        "services/health/main.py",
        _TURNS + "test_a_disk_that_is_full_is_tried_once_a_second",
        "a disk that is full is tried in every turn",
        '            self._disk_trouble = ""\n        self._keep = False\n',
        '            self._disk_trouble = ""\n            self._keep = False\n',
    ),
    _of(
        "services/health/main.py",
        _TURNS + "test_a_disk_that_is_full_is_tried_once_a_second",
        "a disk that was full is not tried again",
        "        if self._disk_trouble:\n            self._keep = True\n",
        "",
    ),
    _of(
        "services/health/main.py",
        _TURNS + "test_a_ban_ages_by_this_machines_own_clock",
        "each start of the process is taken for one of the machine",
        "        self._file = StateFile(paths.state_dir, boot_id())\n",
        "        self._file = StateFile(paths.state_dir, str(now_ms))\n",
    ),
    _of(
        "services/health/statefile.py",
        _TURNS + "test_a_ban_ages_by_this_machines_own_clock",
        "a ban ages by the wall clock",
        "            elapsed_ms = now_ms - record.monotonic_ms\n",
        "            elapsed_ms = time_ms - record.time_ms\n",
    ),
    _of(
        "services/health/main.py",
        _TURNS + "test_a_ban_of_the_table_is_as_old_as_the_table",
        "an old table is taken for a new one",
        "                age_ms = max(0, now_ms - envelope.head.made_ms)\n",
        "                age_ms = 0\n",
    ),
    _of(
        "services/health/main.py",
        _TURNS + "test_a_pardon_of_the_table_is_carried_out",
        "orders in the table are not heeded",
        "                self._registry.heed(envelope.data.table, now_ms)\n",
        "",
    ),
    _of(
        "services/health/main.py",
        _TURNS + "test_who_comes_late_has_not_listened",
        "who comes late accuses those it did not hear",
        "            self._registry.lagged(lag_ms, now_ms)\n",
        "",
    ),
    _of(
        "services/health/main.py",
        _TURNS + "test_that_a_view_holds_is_said_twice_a_second",
        "that a view holds is not said",
        "            self._publisher.repeat(Topic.STATE_VIEW)\n",
        "            pass\n",
    ),
    _of(
        "services/health/listener.py",
        _LISTENER + "test_at_another_port_the_one_of_before_is_let_go",
        "an old endpoint is left bound",
        "        if former is not None:\n            self.socket.unbind(former)\n",
        "",
    ),
    _of(
        "services/health/listener.py",
        _LISTENER + "test_while_the_next_port_is_taken_the_one_of_before_stays",
        "the old endpoint goes before there is another",
        "        try:\n            self.socket.bind(endpoint)\n",
        "        try:\n"
        "            if self.endpoint is not None:\n"
        "                self.socket.unbind(self.endpoint)\n"
        "                self.endpoint = None\n"
        "            self.socket.bind(endpoint)\n",
    ),
    _of(
        "services/process.py",
        _PROCESS + "test_who_has_not_listened_for_so_long_is_late_by_that",
        "what a turn took after it had listened is no lateness",
        "        self._lateness.waits("
        "monotonic_ms() if listened_ms is None else listened_ms, wait_ms)\n",
        "        self._lateness.waits(monotonic_ms(), wait_ms)\n",
    ),
    _of(
        "services/process.py",
        _PROCESS + "test_what_has_woken_the_loop_is_seen_to",
        "one signal wakes the loop for ever",
        "            self._reading.recv(4096)\n",
        "            pass\n",
    ),
    _of(
        "services/statefile.py",
        "tests/test_statefile.py::test_only_a_durable_one_waits_for_the_disk",
        "what was promised is not yet on the disk",
        "            if self._durable:\n                os.fsync(file.fileno())\n",
        "",
    ),
    _of(
        "services/node/main.py",
        "tests/health/test_main.py::test_sigterm_drains_and_is_no_failure",
        "an agent ends without a word",
        "            self._core.leave(now_ms)\n",
        "            self._core.activity = Activity.ENDED\n",
    ),
    _of(
        "services/node/main.py",
        _LINK + "test_the_pause_before_a_new_connection_grows_until_the_lb_has_spoken",
        "an agent connects anew without a pause that grows",
        "        self._renewal_ms[lb] = min(2 * pause_ms, LONGEST_RENEWAL_MS)\n",
        "",
    ),
    _of(
        "services/node/main.py",
        _LINK + "test_what_could_not_be_sent_is_told_again",
        "what could not be sent counts as told",
        "                self._core.unsent(lb)\n",
        "                pass\n",
    ),
    _of(
        "services/node/link.py",
        _LINK + "test_a_connection_that_comes_back_by_itself_is_not_spent",
        "a connection that came back by itself is thrown away",
        "                self.stands = True\n                self.spent = False\n",
        "                self.stands = True\n",
    ),
    _of(
        "bus/socket.py",
        "tests/bus/test_socket.py::test_of_many_states_only_the_newest_is_decoded",
        "every state that came is decoded",
        "            if newest.get((head.source, head.topic), place) == place\n"
        "            and (envelope",
        "            if (envelope",
    ),
)
