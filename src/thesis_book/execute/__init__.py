"""Run chapters with papermill: parameters, records, claims, sweeps."""
