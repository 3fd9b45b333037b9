package proxy_test

import "cc-relay/internal/simulator"

// status is a fault that answers so.
func status(code int) simulator.Fault {
	return simulator.Fault{Kind: simulator.FaultStatus, Status: code}
}

func faults(f ...simulator.Fault) []simulator.Fault { return f }

// key narrows a fault to the nth key of its provider.
func key(n int, f simulator.Fault) simulator.Fault {
	f.Key = itoa(n)
	return f
}
