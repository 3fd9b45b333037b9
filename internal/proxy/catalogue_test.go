package proxy_test

import "testing"

// The tests of rows of the catalogue of faults, by the rows' names.

func TestSecurity(t *testing.T) {
	t.Run("S07", testBrowsers)
}
