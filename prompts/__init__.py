"""Prompt files, one folder a system. `agentsys.roles.load_prompt("drt/advisor")` reads one."""
