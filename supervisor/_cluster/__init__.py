"""Other nodes: what a supervisor shares with them through one engine, Redis or Valkey. Nothing below knows it."""
