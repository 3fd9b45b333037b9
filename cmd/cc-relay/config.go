package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"cc-relay/internal/config"
)

func configCommand() *cobra.Command {
	cmd := group("config", "Write, check, show, compare and reload configurations")
	cmd.AddCommand(configInitCommand(), configValidateCommand(), configShowCommand(), configSchemaCommand(), configDiffCommand(), configReloadCommand())
	return cmd
}

func configInitCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a commented configuration file with every setting and its default",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output == "-" {
				_, err := cmd.OutOrStdout().Write(config.Example())
				return err
			}
			if filepath.Ext(output) == ".toml" {
				return fmt.Errorf("the commented configuration is YAML; choose another name than %s, such as config.yaml", output)
			}
			if err := writeNew(output, config.Example()); err != nil {
				return err
			}
			beside, err := writeSchema(filepath.Dir(output))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s%s; set ANTHROPIC_API_KEY or edit its keys, then run: cc-relay serve --config %s\n", output, beside, output)
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "config.yaml", "file to write, - for standard output")
	return cmd
}

// schemaFile is the name by which the example asks editors for the schema.
const schemaFile = "config.schema.json"

// writeSchema puts the schema into dir, for editors, unless there is one, and returns
// what to say of it.
func writeSchema(dir string) (said string, err error) {
	path := filepath.Join(dir, schemaFile)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	_, err = f.Write(config.Schema())
	return " and, for editors, " + path, errors.Join(err, f.Close())
}

// writeNew writes a file that its owner alone can read, and never over another.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; choose another file with --output", path)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func configValidateCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check the configuration and report every mistake",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, source, err := loadConfig(new(config.Sources), file)
			if err != nil {
				return err
			}
			for _, t := range []config.TLS{cfg.Server.TLS, cfg.Admin.TLS} {
				if t == (config.TLS{}) {
					continue
				}
				// A relay that runs keeps the pair that it has; one that starts needs one that is valid now.
				if _, err := newCertificate(t.CertFile, t.KeyFile, nil); err != nil {
					return err
				}
			}
			keys := 0
			for _, p := range cfg.Providers {
				keys += len(p.Keys)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %d provider(s), %d key(s), %d client(s)\n", source, len(cfg.Providers), keys, len(cfg.Clients))
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	return cmd
}

func configShowCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print what the configuration says now, defaults filled in and secrets redacted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := loadConfig(new(config.Sources), file)
			if err != nil {
				return err
			}
			text, err := config.Redacted(cfg)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	return cmd
}

func configSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print a JSON Schema of the configuration, for editors",
		Long: "Print a JSON Schema of the configuration. An editor with a YAML language server checks and\n" +
			"completes a file that starts as config init writes it, with the schema beside it:\n" +
			"cc-relay config schema > " + schemaFile,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.Schema())
			return err
		},
	}
}

func configDiffCommand() *cobra.Command {
	var flags adminFlags
	cmd := &cobra.Command{
		Use:   "diff [OLD NEW]",
		Short: "Print what a change of the configuration does",
		Long: "Print what a change from one configuration file to another does. Without files, print what a\n" +
			"reload of a running relay would change now, or why it would be refused.",
		Example: "  cc-relay config diff\n  cc-relay config diff config.yaml new.yaml",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 || len(args) > 2 {
				return errors.New("compare what? give two files, or none to compare a running relay with its own")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return flags.diffRunning(cmd)
			}
			if name := flags.set(cmd); name != "" {
				return fmt.Errorf("--%s is for a running relay: leave it out, or the two files", name)
			}
			old, err := config.Load(args[0])
			if err != nil {
				return err
			}
			changed, err := config.Load(args[1])
			if err != nil {
				return err
			}
			return printChanges(cmd.OutOrStdout(), config.Diff(old, changed))
		},
	}
	flags.add(cmd)
	return cmd
}

func configReloadCommand() *cobra.Command {
	var flags adminFlags
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Let a running relay read its configuration again",
		Long: "Let a running relay read its configuration again, and print what changed. A relay does so by\n" +
			"itself when the file changes; this waits for it, and fails with the reason where the file cannot\n" +
			"be used. The configuration before it then stays in force. See also: cc-relay config diff.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return flags.act(cmd, "/api/v1/reload", nil) },
	}
	flags.add(cmd)
	return cmd
}

func printChanges(w io.Writer, changes []config.Change) error {
	if len(changes) == 0 {
		_, err := fmt.Fprintln(w, "no change")
		return err
	}
	for _, c := range changes {
		note := ""
		if c.Restart {
			note = "  (needs a restart)"
		}
		if _, err := fmt.Fprintf(w, "%s: %s -> %s%s\n", c.Path, c.From, c.To, note); err != nil {
			return err
		}
	}
	return nil
}
