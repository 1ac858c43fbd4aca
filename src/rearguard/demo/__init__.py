"""The demo: a composition root that lets one watch a real service break and be restored."""
