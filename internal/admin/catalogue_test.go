package admin_test

import "testing"

// The tests of rows of the catalogue of faults, by the rows' names; those that have the
// row in their own names are found by that.

func TestSecurity(t *testing.T) {
	t.Run("S01", TestSecurity_S01_S04_WithoutATrustedTokenThereIsNoAdmin)
	t.Run("S02", TestSecurity_S02_TokensAreKeptAsKeyedHashes)
	t.Run("S03", TestSecurity_S03_S06_EachRouteWithEachCredential)
	t.Run("S04", TestSecurity_S01_S04_WithoutATrustedTokenThereIsNoAdmin)
	t.Run("S05", TestSecurity_S05_FailuresAreThrottledBySource)
	t.Run("S06", TestSecurity_S03_S06_EachRouteWithEachCredential)
	t.Run("S07", TestSecurity_S07_ForeignPages)
	t.Run("S10", TestSecurity_S10_S14_Canary)
	t.Run("S22", TestSecurity_S22_Pprof)
	t.Run("S35", TestFault_D05_D06_S35_TheAuditComesFirst)
}
