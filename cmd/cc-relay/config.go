package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"cc-relay/internal/config"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Write, check and show the configuration"}
	cmd.AddCommand(configInitCommand(), configValidateCommand(), configShowCommand())
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
			if err := writeNew(output, config.Example()); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "wrote %s; set ANTHROPIC_API_KEY or edit its keys, then run: cc-relay serve --config %s\n", output, output)
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "config.yaml", "file to write, - for standard output")
	return cmd
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
			cfg, source, err := loadConfig(file)
			if err != nil {
				return err
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
		Short: "Print the configuration in force, defaults filled in and secrets redacted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := loadConfig(file)
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
