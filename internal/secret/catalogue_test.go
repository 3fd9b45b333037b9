package secret_test

import "testing"

// The tests of rows of the catalogue of faults, by the rows' names.

func TestSecurity(t *testing.T) {
	t.Run("S13", func(t *testing.T) {
		t.Run("forms", TestNoVerbOrEncoderShowsASecret)
		t.Run("a planted one", TestTheTestFindsAPlantedSecret)
	})
}
