"""Flower asks every process for its task before it may build a message; a simulation's answer."""

from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1
SERVER_NODE_ID = 1 << 62


def declare_task(node_id: int = SERVER_NODE_ID) -> None:
    """Tell Flower that this process is the task of a node in a simulation."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, 1, node_id
