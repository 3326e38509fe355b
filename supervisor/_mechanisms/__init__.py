"""Everything that waits: tasks, scopes and wires around the decisions."""
