"""Many runs: grids, their runner, experiments with statistics over seeds, and reports."""
