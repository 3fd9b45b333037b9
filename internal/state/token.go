package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

const tokenBytes = 32

// Token returns the secret that the file name holds, 64 hexadecimal digits, and
// makes a random one at first use, once even where several processes start together;
// made reports whether this call did. It never goes on without one: a file that is
// empty, something else, not a regular file, unreadable, of another user or usable by
// others is an error that says what to do, and stays as it is.
func (d *Dir) Token(name string) (token string, made bool, err error) {
	for range 3 { // another process may make or delete it at the same time
		token, err = d.readToken(name)
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		var random [tokenBytes]byte
		_, _ = rand.Read(random[:]) // never fails
		token = hex.EncodeToString(random[:])
		err = d.put(name, []byte(token+"\n"), d.placeNew)
		if err == nil {
			return token, true, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	if err != nil {
		return "", false, fmt.Errorf("state file %s: %w", filepath.Join(d.path, name), err)
	}
	return token, false, nil
}

func (d *Dir) readToken(name string) (string, error) {
	data, err := d.read(name)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if raw, err := hex.DecodeString(token); err != nil || len(raw) != tokenBytes {
		return "", fmt.Errorf("does not hold a token of %d hexadecimal digits; delete it, and the next start makes a new one", 2*tokenBytes)
	}
	return token, nil
}
