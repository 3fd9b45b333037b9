package config_test

import "testing"

// The tests of security rows of the catalogue of faults, by the rows' names; TestFault
// and those after it have the rows of faults.

func TestSecurity(t *testing.T) {
	t.Run("S20", func(t *testing.T) {
		t.Run("files of secrets", testFilesThatAreNotTrusted)
		t.Run("the configuration", testASecretNeedsAPrivateFile)
	})
	t.Run("S21", func(t *testing.T) {
		t.Run("files", testSecretsInFiles)
		t.Run("only for secrets", testFilesAreForSecrets)
		t.Run("descriptors", testDescriptors)
		t.Run("other descriptors", testDescriptorsThatAreNotTrusted)
		t.Run("variables", testVariablesAreTaken)
		t.Run("variables of others", testVariablesStay)
	})
	t.Run("S27", testBounds)
}
