"""Whether a site's power envelope carries what placements would add.

A site draws the sum over its nodes of idle plus the held share of the span to peak, times its power
usage effectiveness. Unreachable nodes and zones not open count too: they are switched on.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from moulin.domain.factory import Site
from moulin.scheduler.declared import Declared
from moulin.scheduler.nodes import Column, Columns, node_draw_mw

PPM: Final = 1_000_000
MW_PER_W: Final = 1000


@dataclass(slots=True)
class SitePower:
    """One site with an envelope: what its machines are committed to draw, before overhead."""

    site: Site
    it_mw: int
    is_frozen: bool = False

    def carries(self, added_mw: int) -> bool:
        """Whether the envelope holds with `added_mw` more at the machines.

        A frozen site (an earlier gang waits for its power) takes only what adds nothing.
        """
        if added_mw <= 0:
            return True
        limit = self.site.power_envelope_w * MW_PER_W * PPM
        return not self.is_frozen and (self.it_mw + added_mw) * self.site.pue_ppm <= limit

    def with_overhead_w(self, it_mw: int) -> int:
        """Return watts at the site's meter for milliwatts at the machines, rounded up."""
        return -(-it_mw * self.site.pue_ppm // (MW_PER_W * PPM))


def power_by_site(declared: Declared, columns: Columns) -> dict[int, SitePower]:
    """Return the sites that state an envelope, by site index. Cost: O(sites · nodes)."""
    limited = [
        (index, declared.sites[name])
        for index, name in enumerate(declared.site_names)
        if declared.sites[name].power_envelope_w
    ]
    if not limited:
        return {}
    draw = np.where(columns[Column.IS_PRESENT] > 0, node_draw_mw(columns), 0)
    return {
        index: SitePower(site, int(draw[columns[Column.SITE] == index].sum()))
        for index, site in limited
    }


def site_draw_w(declared: Declared, columns: Columns, site: str) -> int:
    """Return the watts a site is committed to draw at its meter, rounded up; 0 when unknown."""
    if site not in declared.sites:
        return 0
    here = columns[Column.SITE] == declared.site_names.index(site)
    draw = node_draw_mw(columns)[here & (columns[Column.IS_PRESENT] > 0)]
    return SitePower(declared.sites[site], 0).with_overhead_w(int(draw.sum()))
