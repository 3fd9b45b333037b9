package e2e_test

import "testing"

// The tests of rows of the catalogue of faults, by the rows' names.

func TestFault(t *testing.T) {
	t.Run("N01", testASlowNetwork)
}
