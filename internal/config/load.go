package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
)

// Load reads the configuration file at path with the process environment; see
// Parse. A file that holds a secret itself, rather than where one is, is refused
// when its group or others may read it. Only a regular file of at most 1 MiB is
// read; a pipe or a device is refused without waiting for it.
func Load(path string) (*Config, error) { return new(Sources).Load(path) }

func load(path string, env func(string) (string, bool), descriptor func(int) (string, error)) (*Config, *decoder, error) {
	data, info, err := readFile(path, maxFileBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	cfg, d := parse(path, data, env, descriptor)
	d.checkMode(info.Mode().Perm())
	return cfg, d, nil
}

// checkMode reports the first secret in a file that other users can read. The
// permission bits say nothing on Windows.
func (d *decoder) checkMode(mode fs.FileMode) {
	if len(d.literals) == 0 || mode&0o077 == 0 || runtime.GOOS == "windows" {
		return
	}
	path := d.literals[0]
	d.addAt(d.place(path), path, fmt.Errorf(
		`written out in a file that other users may read (mode %04o); run: chmod 600 %s, or write "${NAME}" to take it from the environment`,
		mode, d.file))
}

// readFile returns a regular file and what the system says of it. Its errors leave
// the name out: it may be a secret in the wrong place.
func readFile(path string, limit int64) ([]byte, fs.FileInfo, error) {
	// Non-blocking, or opening a pipe would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, bare(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, bare(err)
	}
	if info.IsDir() {
		return nil, nil, errors.New("is a directory; name the file in it")
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("is not a regular file; pipes and devices are not read")
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, nil, bare(err)
	}
	if int64(len(data)) > limit {
		return nil, nil, fmt.Errorf("is larger than %d bytes", limit)
	}
	return data, info, nil
}

// mostSecret bounds the file of a secret, in bytes.
const mostSecret = 64 << 10

// readSecret returns what a file holds, without the newline at its end. Nobody may
// have been able to read it who is neither its owner nor root.
func readSecret(path string) (string, error) {
	data, info, err := readFile(path, mostSecret)
	if err == nil {
		err = private(info)
	}
	if err != nil {
		return "", err
	}
	return lineOf(data)
}

// lineOf is a secret without the newline that editors and echo leave behind it.
func lineOf(data []byte) (string, error) {
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	if text == "" {
		return "", errors.New("is empty")
	}
	return text, nil
}

// bare strips the operation and the file name from err.
func bare(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("cannot be read: %w", pe.Err)
	}
	return err
}

// Find returns the configuration file to load: flag if it is set, else config.yaml
// or config.toml in the working directory, else in cc-relay under XDG_CONFIG_HOME or
// ~/.config. ok is false when there is none, which is an error only for flag. Both in
// one directory are an error, as is a file that is there and cannot be looked at.
// https://specifications.freedesktop.org/basedir-spec/latest/
func Find(flag string) (path string, ok bool, err error) {
	if flag != "" {
		if _, err := os.Stat(flag); err != nil {
			return "", false, fmt.Errorf("configuration file %s: %w", flag, bare(err))
		}
		return flag, true, nil
	}
	for _, dir := range usualDirs() {
		yaml, toml := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "config.toml")
		hasYAML, err := exists(yaml)
		if err != nil {
			return "", false, err
		}
		hasTOML, err := exists(toml)
		switch {
		case err != nil:
			return "", false, err
		case hasYAML && hasTOML:
			return "", false, fmt.Errorf("two configuration files, %s and %s: remove one, or choose with --config", yaml, toml)
		case hasYAML:
			return yaml, true, nil
		case hasTOML:
			return toml, true, nil
		}
	}
	return "", false, nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("configuration file %s: %w", path, bare(err))
	}
	return true, nil
}

func usualDirs() []string {
	dirs := []string{""}
	dir := os.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return dirs
		}
		dir = filepath.Join(home, ".config")
	}
	return append(dirs, filepath.Join(dir, "cc-relay"))
}

// The variables of a relay without a file.
const (
	manyKeys = "ANTHROPIC_API_KEYS"
	oneKey   = "ANTHROPIC_API_KEY"
)

// FromEnv returns the configuration of a relay without a file: every default, and
// one provider with the keys of ANTHROPIC_API_KEYS, separated by commas, and of
// ANTHROPIC_API_KEY, in this order; a key in both counts once. ok is false when
// neither is set to anything. The error says which entry is wrong, not what it holds.
func FromEnv(env func(string) (string, bool)) (cfg *Config, ok bool, err error) {
	keys, err := envKeys(env)
	if err != nil || len(keys) == 0 {
		return nil, false, err
	}
	p := Provider{Keys: keys}
	p.setDefaults()
	p.finish()
	c := Default()
	c.Providers = []Provider{p}
	return &c, true, nil
}

func envKeys(env func(string) (string, bool)) (keys []keypool.KeyConfig, err error) {
	many, _ := env(manyKeys)
	one, _ := env(oneKey)
	seen := map[string]int{}
	for i, entry := range strings.Split(many, ",") {
		key := strings.TrimSpace(entry)
		if key == "" {
			continue
		}
		if other, dup := seen[key]; dup {
			return nil, fmt.Errorf("ANTHROPIC_API_KEYS: entries %d and %d are the same key; remove one", other, i+1)
		}
		if !isVisible(key) {
			return nil, fmt.Errorf("ANTHROPIC_API_KEYS: entry %d has a space or a character that no key has; separate keys by commas", i+1)
		}
		seen[key] = i + 1
		keys = append(keys, keypool.KeyConfig{Key: secret.New(key)})
	}
	one = strings.TrimSpace(one)
	if !isVisible(one) {
		return nil, errors.New("ANTHROPIC_API_KEY: has a space or a character that no key has; for several keys use ANTHROPIC_API_KEYS")
	}
	if _, dup := seen[one]; one != "" && !dup {
		keys = append(keys, keypool.KeyConfig{Key: secret.New(one)})
	}
	return keys, nil
}
