"""The shapes of bundled content, as this room makes them; they are defined where the delivering room sees
them too.
"""

from workers.content import LINK_MODE, Bundle, Entry

__all__ = ["LINK_MODE", "Bundle", "Entry"]
