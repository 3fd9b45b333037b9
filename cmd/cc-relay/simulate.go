package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cc-relay/internal/simulator"
)

func simulateCommand() *cobra.Command {
	var file, address string
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Serve a simulated provider with real limits, prompt cache and faults",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := simulator.DefaultConfig()
			if file != "" {
				var err error
				if cfg, err = loadSimulation(file); err != nil {
					return err
				}
			}
			sim, err := simulator.New(cfg)
			if err != nil {
				return err
			}
			l, err := listen(address, nil, nil)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "simulated provider on http://%s with keys:\n", l.Addr()); err != nil {
				return err
			}
			for _, org := range cfg.Organizations {
				for _, k := range org.Keys {
					_, _ = fmt.Fprintf(cmd.OutOrStdout(), "  %s (%s)\n", k.Key, org.ID)
				}
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			server := &http.Server{Handler: sim, ReadHeaderTimeout: 10 * time.Second}
			context.AfterFunc(ctx, func() { _ = server.Close() })
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "simulation file (YAML)")
	cmd.Flags().StringVar(&address, "listen", "127.0.0.1:8789", "address to serve on")
	return cmd
}

func loadSimulation(path string) (simulator.Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return simulator.Config{}, err
	}
	defer func() { _ = f.Close() }()
	cfg, err := simulator.LoadConfig(f)
	if err != nil {
		return simulator.Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return cfg, nil
}
