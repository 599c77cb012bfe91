"""The steps of the demo in front of a Slurm cluster, in the order of the story."""

from typing import Final

from moulin.app.demo.cluster.bad_node import kill_control_plane, lose_a_node
from moulin.app.demo.cluster.bill import show_bill
from moulin.app.demo.cluster.front import build_front
from moulin.app.demo.cluster.stage import ClusterStage
from moulin.app.demo.cluster.teams import work_in_teams
from moulin.app.demo.cluster.walltime import outlive_walltime
from moulin.app.demo.play import Story

CLUSTER_STORY: Final = Story(
    stage=ClusterStage,
    steps=(
        ("front", "A cluster of Slurm, and Moulin in front of it", build_front),
        ("teams", "Two teams, a gang, and a job from outside", work_in_teams),
        ("walltime", "A model that outlives its walltime", outlive_walltime),
        ("node", "A node loses its power", lose_a_node),
        ("crash", "The control plane is killed", kill_control_plane),
        ("bill", "The bill, and what proves it", show_bill),
    ),
)
