package config_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
	"cc-relay/internal/keypool"
	"cc-relay/internal/secret"
)

func writeFile(t *testing.T, mode fs.FileMode, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	require.NoError(t, os.Chmod(path, mode))
	return path
}

func TestLoad(t *testing.T) {
	t.Setenv("ANTHROPIC_API_KEY", "sk-ant-1")
	want, err := config.Parse("example.yaml", config.Example(), os.LookupEnv)
	require.NoError(t, err)
	got, err := config.Load(writeFile(t, 0o644, string(config.Example())))
	require.NoError(t, err)
	assert.Equal(t, want, got)
}

func TestLoadSaysWhereAndWhat(t *testing.T) {
	path := writeFile(t, 0o600, "providers:\n- keys:\n  - { key: k, priority: 7 }\n  - { key: l, weigth: 1 }\n")
	_, err := config.Load(path)
	assert.EqualError(t, err, path+":3:25: providers[0].keys[0].priority: 7 is not a priority; write 0 (low), 1 (normal) or 2 (high)\n"+
		path+":4:15: providers[0].keys[1].weigth: unknown field; did you mean weight?")
}

func testASecretNeedsAPrivateFile(t *testing.T) {
	t.Setenv("KEY", "sk-ant-1")
	t.Setenv("TOKEN", "a-test-token")
	const pool = "providers: [{ keys: [{ key: '${KEY}' }] "
	literal := map[string]struct{ text, path string }{
		"key":             {"providers: [{ keys: [{ key: sk-ant-1 }] }]", "1:29: providers[0].keys[0].key"},
		"part of a key":   {"providers: [{ keys: [{ key: 'sk-${KEY}' }] }]", "1:29: providers[0].keys[0].key"},
		"default":         {"providers: [{ keys: [{ key: '${KEY:-sk-ant-2}' }] }]", "1:29: providers[0].keys[0].key"},
		"token":           {pool + "}]\nclients: [{ name: a, token: a-test-token }]", "2:29: clients[0].token"},
		"header":          {pool + ", headers: { x-a: b } }]", "1:59: providers[0].headers.x-a"},
		"bearer":          {pool + ", headers: { x-a: Bearer b } }]", "1:59: providers[0].headers.x-a"},
		"first of many":   {pool + ", headers: { x-a: b } }]\nclients: [{ name: a, token: a-test-token }]", "1:59: providers[0].headers.x-a"},
		"escaped literal": {"providers: [{ keys: [{ key: $$ }] }]", "1:29: providers[0].keys[0].key"},
	}
	for name, test := range literal {
		t.Run(name, func(t *testing.T) {
			for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o602, 0o644, 0o777, 0o601} {
				path := writeFile(t, mode, test.text)
				_, err := config.Load(path)
				assert.EqualError(t, err, fmt.Sprintf("%s:%s: written out in a file that other users may read (mode %04o); "+
					`run: chmod 600 %s, or write "${NAME}" to take it from the environment`, path, test.path, mode, path))
			}
			for _, mode := range []fs.FileMode{0o600, 0o400, 0o700} {
				_, err := config.Load(writeFile(t, mode, test.text))
				assert.NoError(t, err, "mode %o", mode)
			}
		})
	}
	for name, text := range map[string]string{
		"variables":         pool + ", headers: { authorization: 'Bearer ${KEY}', x-b: '${KEY}${TOKEN}' } }]\nclients: [{ name: a, token: '${TOKEN}' }]",
		"hash":              pool + "}]\nclients: [{ name: a, token_sha256: " + hashOfToken + " }]",
		"empty default":     "providers: [{ keys: [{ key: '${KEY:-}' }] }]",
		"no secrets at all": "providers: [{ base_url: 'http://localhost:1' }]",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Load(writeFile(t, 0o644, text))
			assert.NoError(t, err)
		})
	}
}

func TestModeAndOtherMistakesComeTogether(t *testing.T) {
	path := writeFile(t, 0o644, "providers:\n- keys:\n  - { key: k, weight: 0 }\n")
	_, err := config.Load(path)
	require.Error(t, err)
	assert.Equal(t, 2, len(strings.Split(err.Error(), "\n")), "%s", err)
}

func TestLoadRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	large := filepath.Join(dir, "large")
	require.NoError(t, os.WriteFile(large, nil, 0o600))
	require.NoError(t, os.Truncate(large, 1<<20+1))
	exact := filepath.Join(dir, "exact")
	require.NoError(t, os.WriteFile(exact, []byte("providers: [{ keys: [{ key: k }] }]\n#"+strings.Repeat("x", 1<<20-37)), 0o600))

	for path, want := range map[string]string{
		dir:                       "is a directory; name the file in it",
		fifo:                      "is not a regular file; pipes and devices are not read",
		os.DevNull:                "is not a regular file; pipes and devices are not read",
		large:                     "is larger than 1048576 bytes",
		filepath.Join(dir, "no"):  "cannot be read: no such file or directory",
		filepath.Join(large, "x"): "cannot be read: not a directory",
	} {
		_, err := config.Load(path)
		assert.EqualError(t, err, path+": "+want)
	}
	_, err := config.Load(filepath.Join(dir, "no"))
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, err = config.Load(exact)
	assert.NoError(t, err, "a file of exactly the limit")
}

func TestFind(t *testing.T) {
	home, xdg := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Chdir(t.TempDir())
	find := func(flag, want string) {
		t.Helper()
		path, found, err := config.Find(flag)
		require.NoError(t, err)
		assert.Equal(t, want, path)
		assert.Equal(t, want != "", found)
	}
	touch := func(path string) string {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		return path
	}

	find("", "")
	inHome := touch(filepath.Join(home, ".config", "cc-relay", "config.yaml"))
	find("", inHome)
	t.Setenv("XDG_CONFIG_HOME", "relative")
	find("", inHome)
	t.Setenv("XDG_CONFIG_HOME", xdg)
	find("", "")
	t.Setenv("XDG_CONFIG_HOME", inHome)
	find("", "")
	t.Setenv("XDG_CONFIG_HOME", xdg)
	inXDG := touch(filepath.Join(xdg, "cc-relay", "config.yaml"))
	find("", inXDG)
	find("", touch("config.yaml"))
	find(inHome, inHome)
	find("config.yaml", "config.yaml")

	path, found, err := config.Find("none.yaml")
	assert.Empty(t, path)
	assert.False(t, found)
	assert.EqualError(t, err, "configuration file none.yaml: cannot be read: no such file or directory")
	assert.ErrorIs(t, err, fs.ErrNotExist)

	require.NoError(t, os.Rename("config.yaml", "config.toml"))
	find("", "config.toml")
	touch("config.yaml")
	_, found, err = config.Find("")
	assert.False(t, found)
	assert.EqualError(t, err, "two configuration files, config.yaml and config.toml: remove one, or choose with --config")
	find("config.toml", "config.toml")
	require.NoError(t, os.Remove("config.toml"))

	loop := filepath.Join(t.TempDir(), "cc-relay")
	require.NoError(t, os.Symlink(loop, loop))
	require.NoError(t, os.Remove("config.yaml"))
	t.Setenv("XDG_CONFIG_HOME", filepath.Dir(loop))
	_, found, err = config.Find("")
	assert.False(t, found)
	assert.ErrorIs(t, err, syscall.ELOOP, "what cannot be looked at is not taken for missing")
}

func TestFindWithoutHome(t *testing.T) {
	t.Setenv("HOME", "")
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Chdir(t.TempDir())
	_, found, err := config.Find("")
	assert.NoError(t, err)
	assert.False(t, found)
}

func TestFromEnv(t *testing.T) {
	for name, test := range map[string]struct {
		one, many string
		want      []string
	}{
		"one":               {"k1", "", []string{"k1"}},
		"many":              {"", "k1,k2", []string{"k1", "k2"}},
		"both":              {"k3", "k1,k2", []string{"k1", "k2", "k3"}},
		"one among many":    {"k2", "k1,k2", []string{"k1", "k2"}},
		"spaces and commas": {" k3\n", " k1 ,, k2,\n", []string{"k1", "k2", "k3"}},
		"empty":             {"", "", nil},
		"nothing in it":     {" ", " , ,", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, found, err := config.FromEnv(environ("ANTHROPIC_API_KEY", test.one, "ANTHROPIC_API_KEYS", test.many))
			require.NoError(t, err)
			assert.Equal(t, test.want != nil, found)
			if test.want == nil {
				assert.Nil(t, got)
				return
			}
			require.NoError(t, got.Validate())
			want := config.Default()
			var keys []keypool.KeyConfig
			for _, k := range test.want {
				keys = append(keys, keypool.KeyConfig{Key: secret.New(k)})
			}
			want.Providers = []config.Provider{anthropic(keys...)}
			assert.Equal(t, &want, got)
		})
	}
	_, found, err := config.FromEnv(environ())
	assert.NoError(t, err)
	assert.False(t, found)
}

func TestFromEnvMistakes(t *testing.T) {
	for name, test := range map[string]struct{ one, many, want string }{
		"twice":    {"", "a,b," + canary + ",, " + canary, "ANTHROPIC_API_KEYS: entries 3 and 5 are the same key; remove one"},
		"no comma": {"", "a," + canary + " " + canary, "ANTHROPIC_API_KEYS: entry 2 has a space or a character that no key has; separate keys by commas"},
		"control":  {canary + "\x00", "", "ANTHROPIC_API_KEY: has a space or a character that no key has; for several keys use ANTHROPIC_API_KEYS"},
	} {
		t.Run(name, func(t *testing.T) {
			_, found, err := config.FromEnv(environ("ANTHROPIC_API_KEY", test.one, "ANTHROPIC_API_KEYS", test.many))
			assert.False(t, found)
			assert.EqualError(t, err, test.want)
		})
	}
}
