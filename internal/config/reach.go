package config

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// LoadListeners reads what it takes to find the relay that runs with the file at path,
// and its tokens: where it listens and where its state is. A mistake anywhere else in
// the file is none here, nor is a variable that this process does not have: the relay
// may have begun to run before the one, and with the other. Of server and admin, only
// addresses, certificates and the state directory are checked.
func LoadListeners(path string) (Server, Admin, error) {
	data, _, err := readFile(path, maxFileBytes)
	if err != nil {
		return Server{}, Admin{}, fmt.Errorf("%s: %w", path, err)
	}
	cfg, d := parse(path, data, os.LookupEnv, func(int) (string, error) { return "", errNotOurs })
	d.mistakes = slices.DeleteFunc(d.mistakes, func(m *Mistake) bool { return !leadsAstray(m.Path) })
	return cfg.Server, cfg.Admin, d.err()
}

// errNotOurs is why descriptors are not read: those of the file are the relay's.
var errNotOurs = errors.New("a descriptor of another process")

// leadsAstray reports whether a mistake at path may hide where a relay is. The key of a
// certificate is the relay's alone, and need not be readable.
func leadsAstray(path string) bool {
	section, _, _ := strings.Cut(path, ".")
	return path == "" || path == "server" || strings.HasPrefix(path, "server.state") ||
		section == "admin" && path != "admin.tls.key_file"
}
