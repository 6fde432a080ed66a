"""The planner: what fits on a device, from ``config.json`` alone. Formulas without torch; docs/planner.md says where each comes from."""
