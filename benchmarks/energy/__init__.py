"""How much weights have to move to reach an accuracy: the published protocols, their rules and ours."""
