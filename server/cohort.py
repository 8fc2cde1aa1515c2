"""Who can take part: every node is asked what it brings to the study."""

from collections.abc import Callable

from flwr.serverapp import Grid

from echofed.protocol.errors import EchoFedError, ReplyRefusedError
from echofed.protocol.flower_records import content, read_document
from echofed.protocol.messages import DescribeReply, Instruction
from echofed.protocol.study import Study
from echofed.server.rounds import exchange


def describe_sites(
    study: Study,
    grid: Grid,
    on_reply: Callable[[int], None] = lambda count: None,
    timeout_seconds: float | None = None,
) -> tuple[dict[int, DescribeReply], dict[int, str]]:
    """Ask every node of the grid to describe itself.

    Args:
        study: what was agreed.
        grid: Flower's way to the sites.
        on_reply: told the number of replies so far.
        timeout_seconds: for the sites' answers; a round's if absent.

    Returns:
        What each node said, in the order of the sites' names, and why the others could not answer, by node id.
    """
    instruction = Instruction(kind="describe", study_hash=study.hash, round_number=0)
    timeout = timeout_seconds or study.federation.round_timeout_seconds
    messages = [grid.create_message(content(instruction), "query", node, "0", timeout) for node in grid.get_node_ids()]
    described: dict[int, DescribeReply] = {}
    failed: dict[int, str] = {message.metadata.dst_node_id: "It did not answer in time." for message in messages}
    for number, reply in enumerate(exchange(grid, messages, timeout), start=1):
        node = reply.metadata.src_node_id
        try:
            if reply.has_error():
                raise ReplyRefusedError(reply.error.reason or "It gave no reason.")
            described[node] = read_document(reply.content, DescribeReply)
            del failed[node]
        except EchoFedError as error:
            failed[node] = error.what
        on_reply(number)
    return dict(sorted(described.items(), key=lambda item: item[1].site)), failed
