"""Sources of observations; each implements `rearguard.ports.TelemetrySource`."""
