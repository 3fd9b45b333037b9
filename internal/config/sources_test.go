package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/config"
)

// secretFile is a file of a secret as it should be.
func secretFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// testSecretsInFiles: a key, a token and a part of a header in files.
func testSecretsInFiles(t *testing.T) {
	for end, want := range map[string]string{"": "", "\n": "", "\r\n": "", "\n\n": "\n", " ": " "} {
		path := secretFile(t, "part-of-"+canary+end)
		file := writeFile(t, 0o644, "providers: [{ keys: [{ key: k-1 }], headers: { x-a: 'Bearer ${file:"+path+"}' } }]")
		require.NoError(t, os.Chmod(file, 0o600))
		cfg, err := config.Load(file)
		if want == "\n" { // no header has a line break in it
			assert.ErrorContains(t, err, "x-a: ")
			assert.False(t, holdsCanary(err))
			continue
		}
		require.NoError(t, err, "%q", end)
		assert.Equal(t, "Bearer part-of-"+canary+want, cfg.Providers[0].Headers["x-a"].Reveal())
	}
	key, token := secretFile(t, canary+"\n"), secretFile(t, "a-token-of-ann")
	file := writeFile(t, 0o644, "clients: [{ name: ann, token: '${file:"+token+"}' }]\nproviders: [{ keys: [{ key: '${file:"+key+"}' }] }]")
	cfg, err := config.Load(file)
	require.NoError(t, err, "the configuration itself holds no secret, so it may be read")
	assert.Equal(t, canary, cfg.Providers[0].Keys[0].Key.Reveal())
	assert.Equal(t, "a-token-of-ann", cfg.Clients[0].Token.Reveal())
	assert.Equal(t, []string{file, token, key}, config.Files(file, cfg), "they are watched")

	require.NoError(t, os.WriteFile(key, []byte("sk-ant-rotated"), 0o600))
	again, err := config.Load(file)
	require.NoError(t, err)
	assert.Equal(t, "sk-ant-rotated", again.Providers[0].Keys[0].Key.Reveal(), "files are read again")
	shown, err := config.Redacted(again)
	require.NoError(t, err)
	assert.NotContains(t, string(shown), "sk-ant-rotated")
	changes := config.Diff(cfg, again)
	require.NotEmpty(t, changes)
	assert.NotContains(t, fmt.Sprint(changes), canary)
}

// testFilesThatAreNotTrusted: F07 for the files of secrets.
func testFilesThatAreNotTrusted(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	loop := filepath.Join(dir, "loop")
	require.NoError(t, os.Symlink(loop, loop))
	moded := func(mode os.FileMode) string {
		path := secretFile(t, canary)
		require.NoError(t, os.Chmod(path, mode))
		return path
	}
	for name, test := range map[string]struct{ path, want string }{
		"missing":             {filepath.Join(dir, "none"), "cannot be read: no such file or directory"},
		"a name that is none": {canary, "cannot be read: no such file or directory"},
		"no name":             {"", "cannot be read: no such file or directory"},
		"a directory":         {dir, "is a directory; name the file in it"},
		"a pipe":              {pipe, "is not a regular file; pipes and devices are not read"},
		"a device":            {os.DevNull, "is not a regular file; pipes and devices are not read"},
		"a circle":            {loop, "cannot be read: too many levels of symbolic links"},
		"empty":               {secretFile(t, ""), "is empty"},
		"a line and no more":  {secretFile(t, "\n"), "is empty"},
		"too large":           {secretFile(t, strings.Repeat("x", 64<<10+1)), "is larger than 65536 bytes"},
		"for its group":       {moded(0o640), "may be used by other users (mode 0640); run: chmod 600 on it"},
		"for all":             {moded(0o604), "may be used by other users (mode 0604); run: chmod 600 on it"},
		"for all to write":    {moded(0o602), "may be used by other users (mode 0602); run: chmod 600 on it"},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			_, err := config.Load(writeFile(t, 0o600, "providers: [{ keys: [{ key: '${file:"+test.path+"}' }] }]"))
			assert.ErrorContains(t, err, "config.yaml:1:29: providers[0].keys[0].key: the file of the secret "+test.want)
			assert.False(t, holdsCanary(err), "%v", err)
			assert.Less(t, time.Since(began), 4*time.Second, "it waited")
		})
	}
	t.Run("of another user", func(t *testing.T) {
		if os.Geteuid() != 0 { // only root can give a file away, so root's file is taken for one
			_, err := config.Load(writeFile(t, 0o600, "providers: [{ keys: [{ key: '${file:/etc/shadow}' }] }]"))
			assert.ErrorContains(t, err, "the file of the secret ")
			return
		}
		path := secretFile(t, canary)
		require.NoError(t, os.Chown(path, 4711, -1))
		_, err := config.Load(writeFile(t, 0o600, "providers: [{ keys: [{ key: '${file:"+path+"}' }] }]"))
		assert.ErrorContains(t, err, "the file of the secret belongs to user 4711, and the relay runs as 0; change its owner")
	})
}

// Only what is never shown may come from a file: a setting would be printed.
func testFilesAreForSecrets(t *testing.T) {
	path := secretFile(t, canary)
	for _, text := range []string{"server: { listen: '${file:PATH}' }", "logging: { level: '${fd:3}' }", "providers: [{ name: '${file:PATH}', base_url: '${file:PATH}' }]", "clients: [{ name: '${file:PATH}', token_sha256: '${file:PATH}' }]"} {
		_, err := config.Parse("c.yaml", []byte(strings.ReplaceAll(text, "PATH", path)), environ())
		assert.ErrorContains(t, err, `"${file:...}" and "${fd:...}" are for keys, tokens and headers; write the value itself, or "${NAME}"`)
		assert.False(t, holdsCanary(err), "%v", err)
	}
	cfg, err := config.Parse("c.yaml", []byte("providers: [{ keys: [{ key: '${file:-a-default}' }] }]"), environ())
	require.NoError(t, err, "variables may have these names")
	assert.Equal(t, "a-default", cfg.Providers[0].Keys[0].Key.Reveal())
}

// inherited is a descriptor as a parent process hands it over.
func inherited(t *testing.T, f *os.File) int {
	t.Helper()
	n, err := syscall.Dup(int(f.Fd()))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return n
}

func pipeWith(t *testing.T, text string) int {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	_, err = w.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return inherited(t, r)
}

// testDescriptors: a secret in a pipe or a file that was open at the start.
func testDescriptors(t *testing.T) {
	opened, err := os.Open(secretFile(t, "a-token-of-ann\n"))
	require.NoError(t, err)
	pipe, file := pipeWith(t, canary+"\n"), inherited(t, opened)
	path := writeFile(t, 0o644, fmt.Sprintf("clients: [{ name: ann, token: '${fd:%d}' }]\nproviders: [{ keys: [{ key: '${fd:%d}' }], headers: { x-a: 'Bearer ${fd:%d}' } }]", file, pipe, pipe))
	var from config.Sources
	for range 2 { // and at a reload
		cfg, err := from.Load(path)
		require.NoError(t, err)
		assert.Equal(t, "a-token-of-ann", cfg.Clients[0].Token.Reveal())
		assert.Equal(t, canary, cfg.Providers[0].Keys[0].Key.Reveal())
		assert.Equal(t, "Bearer "+canary, cfg.Providers[0].Headers["x-a"].Reveal())
	}
	for _, n := range []int{pipe, file} {
		var stat syscall.Stat_t
		assert.Equal(t, syscall.EBADF, syscall.Fstat(n, &stat), "it is closed, so no child has it")
	}
}

func testDescriptorsThatAreNotTrusted(t *testing.T) {
	own, err := os.Open(secretFile(t, canary))
	require.NoError(t, err)
	t.Cleanup(func() { _ = own.Close() })
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	silent, writer, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = writer.Close() })
	device := inherited(t, null)
	t.Cleanup(func() { _ = syscall.Close(device) }) // those that are read are closed with that
	large, err := os.Open(secretFile(t, strings.Repeat("x", 64<<10+1)))
	require.NoError(t, err)
	for name, test := range map[string]struct{ n, want string }{
		"the relay's own":   {strconv.Itoa(int(own.Fd())), "was not handed over; start the relay with it open"},
		"not open":          {"1000", "was not handed over; start the relay with it open"},
		"a device":          {strconv.Itoa(device), "is neither a file nor a pipe"},
		"empty":             {strconv.Itoa(pipeWith(t, "")), "is empty"},
		"the largest":       {strconv.Itoa(pipeWith(t, strings.Repeat("x", 64<<10))), ""},
		"too large":         {strconv.Itoa(inherited(t, large)), "is larger than 65536 bytes"},
		"never written":     {strconv.Itoa(inherited(t, silent)), "was not written to its end within 5s"},
		"standard output":   {"1", `has no such number; write "${fd:3}" to "${fd:1023}"`},
		"beyond all":        {"1024", `has no such number; write "${fd:3}" to "${fd:1023}"`},
		"no number":         {canary, `has no such number; write "${fd:3}" to "${fd:1023}"`},
		"a negative number": {"+-3", `has no such number; write "${fd:3}" to "${fd:1023}"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := config.Parse("c.yaml", []byte("providers: [{ keys: [{ key: '${fd:"+test.n+"}' }] }]"), environ())
			if test.want == "" {
				assert.NoError(t, err)
				return
			}
			assert.ErrorContains(t, err, "c.yaml:1:29: providers[0].keys[0].key: the descriptor of the secret "+test.want)
			assert.False(t, holdsCanary(err), "%v", err)
		})
	}
}

// testVariablesAreTaken: what held a secret is in the environment no more, and a reload
// finds it nevertheless.
func testVariablesAreTaken(t *testing.T) {
	t.Setenv("THE_KEY", canary)
	t.Setenv("SPARE_KEY", canary+"-2")
	t.Setenv("TEAM", "ours")
	t.Setenv("XDG_TEAM", "theirs")
	path := writeFile(t, 0o644, "logging: { level: '${LEVEL:-info}' }\nproviders: [{ name: '${TEAM}', keys: [{ key: '${THE_KEY}' }], headers: { x-a: '${XDG_TEAM}' } }]")
	from := config.Sources{Take: true}
	first, err := from.Load(path)
	require.NoError(t, err)
	isSet := func(name string) bool { _, ok := os.LookupEnv(name); return ok }
	assert.False(t, isSet("THE_KEY"))
	assert.NotContains(t, strings.Join(os.Environ(), "\n"), canary+"\n")
	assert.True(t, isSet("TEAM"), "it is no secret")
	assert.True(t, isSet("XDG_TEAM"), "it says where the relay's files are")
	assert.True(t, isSet("SPARE_KEY"), "it was not read")
	again, err := from.Load(path)
	require.NoError(t, err)
	assert.Equal(t, first, again)
	assert.Equal(t, canary, again.Providers[0].Keys[0].Key.Reveal())

	require.NoError(t, os.WriteFile(path, []byte("providers: [{ keys: [{ key: '${SPARE_KEY}' }, { key: '${THE_KEY}' }] }]"), 0o600))
	changed, err := from.Load(path)
	require.NoError(t, err)
	assert.Equal(t, canary+"-2", changed.Providers[0].Keys[0].Key.Reveal())
	assert.False(t, isSet("SPARE_KEY"))

	t.Setenv("ANTHROPIC_API_KEYS", canary+"-3, "+canary+"-4")
	t.Setenv("ANTHROPIC_API_KEY", canary+"-5")
	for range 2 {
		cfg, ok, err := from.FromEnv()
		require.NoError(t, err)
		require.True(t, ok)
		assert.Len(t, cfg.Providers[0].Keys, 3)
		assert.Equal(t, canary+"-5", cfg.Providers[0].Keys[2].Key.Reveal())
		assert.False(t, isSet("ANTHROPIC_API_KEYS"))
		assert.False(t, isSet("ANTHROPIC_API_KEY"))
	}
}

// testVariablesStay: a command that only looks leaves the environment as it is.
func testVariablesStay(t *testing.T) {
	t.Setenv("THE_KEY", canary)
	_, err := config.Load(writeFile(t, 0o644, "providers: [{ keys: [{ key: '${THE_KEY}' }] }]"))
	require.NoError(t, err)
	assert.Equal(t, canary, os.Getenv("THE_KEY"))
}
